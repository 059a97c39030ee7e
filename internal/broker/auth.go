package broker

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/argon2"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
)

// What HashPassword uses: one of the settings OWASP holds equal, small enough
// for a board with 512 MB. argonMemory is in KiB.
const (
	argonMemory  = 12 << 10
	argonTime    = 3
	argonThreads = 1
	argonSalt    = 16
	argonKey     = 32
)

// maxArgonMemory is the most a hash in the configuration may ask for, in KiB.
const maxArgonMemory = 16 << 10

// passwordHash is an argon2id hash with its settings.
type passwordHash struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

// HashPassword returns the argon2id hash of password with a fresh salt, in the
// form that the configuration takes: $argon2id$v=19$m=...,t=...,p=...$salt$key.
func HashPassword(password string) string {
	salt := make([]byte, argonSalt)
	_, _ = rand.Read(salt) // never fails
	key := argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, argonKey)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version,
		argonMemory, argonTime, argonThreads, b64.EncodeToString(salt), b64.EncodeToString(key))
}

// CheckPassword reports whether password is the one that hash was made from.
// It takes some tens of milliseconds. The error says why hash is none that the
// broker takes.
func CheckPassword(hash, password string) (bool, error) {
	h, err := parseHash(hash)
	if err != nil {
		return false, err
	}
	return h.matches(password), nil
}

func (h *passwordHash) matches(password string) bool {
	key := argon2.IDKey([]byte(password), h.salt, h.time, h.memory, h.threads, uint32(len(h.key)))
	return subtle.ConstantTimeCompare(key, h.key) == 1
}

func parseHash(s string) (*passwordHash, error) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return nil, errors.New(`is not an argon2id hash; make one with "fieldgate passwd"`)
	}
	if want := fmt.Sprintf("v=%d", argon2.Version); parts[2] != want {
		return nil, fmt.Errorf("argon2 version %q, want %s", parts[2], want)
	}
	h := &passwordHash{}
	if !h.settings(parts[3]) {
		return nil, fmt.Errorf("argon2 settings %q, want m=N,t=N,p=N", parts[3])
	}
	switch {
	case h.memory > maxArgonMemory:
		return nil, fmt.Errorf("argon2 memory m=%d KiB, at most %d", h.memory, maxArgonMemory)
	case h.time < 1 || h.time > 10:
		return nil, fmt.Errorf("argon2 passes t=%d, want 1 to 10", h.time)
	case h.threads < 1 || h.threads > 4:
		return nil, fmt.Errorf("argon2 lanes p=%d, want 1 to 4", h.threads)
	case h.memory < 8*uint32(h.threads):
		return nil, fmt.Errorf("argon2 memory m=%d KiB, at least 8 for each lane", h.memory)
	}
	var err1, err2 error
	h.salt, err1 = base64.RawStdEncoding.DecodeString(parts[4])
	h.key, err2 = base64.RawStdEncoding.DecodeString(parts[5])
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("salt or key: %w", err)
	}
	if len(h.salt) < 8 || len(h.salt) > 64 || len(h.key) < 16 || len(h.key) > 64 {
		return nil, fmt.Errorf("salt of %d and key of %d bytes, want 8 to 64 and 16 to 64", len(h.salt), len(h.key))
	}
	return h, nil
}

// settings reads m=N,t=N,p=N. fmt.Sscanf would do it too, but nothing else in
// the program scans, and that is 50 kB of it.
func (h *passwordHash) settings(s string) bool {
	parts := strings.Split(s, ",")
	if len(parts) != 3 {
		return false
	}
	good := true
	number := func(part, name string, bits int) uint64 {
		digits, named := strings.CutPrefix(part, name)
		n, err := strconv.ParseUint(digits, 10, bits)
		good = good && named && err == nil
		return n
	}
	m, t, p := number(parts[0], "m=", 32), number(parts[1], "t=", 32), number(parts[2], "p=", 8)
	h.memory, h.time, h.threads = uint32(m), uint32(t), uint8(p)
	return good
}

// account is what a client may do. It is never changed.
type account struct {
	name               string
	all                bool // anonymous: everything but publishing on $ topics
	hash               *passwordHash
	publish, subscribe []mqtt.Filter
}

// mayPublish reports whether the account may publish on topic, which is a valid
// one. Topics that begin with "$" are the broker's own (clause 4.7.2).
func (a *account) mayPublish(topic string) bool {
	if strings.HasPrefix(topic, "$") {
		return false
	}
	return a.all || slices.ContainsFunc(a.publish, func(f mqtt.Filter) bool { return f.Match(topic) })
}

// maySubscribe reports whether the account may subscribe to filter, without a
// "$share/GROUP/" before it: every topic it matches must be allowed. A topic is
// a filter too.
func (a *account) maySubscribe(filter string) bool {
	return a.all || slices.ContainsFunc(a.subscribe, func(f mqtt.Filter) bool { return covers(string(f), filter) })
}

// covers reports whether outer matches every topic that inner matches.
func covers(outer, inner string) bool {
	if strings.HasPrefix(inner, "$") && !strings.HasPrefix(outer, "$") {
		return false // no wildcard stands for "$..." (clause 4.7.2)
	}
	for {
		o, orest, omore := strings.Cut(outer, "/")
		i, irest, imore := strings.Cut(inner, "/")
		switch {
		case o == "#":
			return true
		case i == "#", o != "+" && o != i:
			return false
		case !imore:
			return !omore || orest == "#" // "a/#" covers "a"
		case !omore:
			return false
		}
		outer, inner = orest, irest
	}
}

// unshared takes "$share/GROUP/" off a filter.
func unshared(filter string) string {
	const share = "$share/"
	if len(filter) < len(share) || !strings.EqualFold(filter[:len(share)], share) {
		return filter
	}
	_, rest, _ := strings.Cut(filter[len(share):], "/")
	return rest
}

// auth knows the accounts and checks passwords, one at a time: each check
// takes many megabytes. A password that was right, or wrong, before is known
// by its digest, so that a storm of reconnects costs next to nothing.
type auth struct {
	users     map[string]*account
	anonymous *account // nil: nobody comes in without a name
	nobody    *passwordHash
	secret    []byte // of the digests
	turn      chan struct{}

	mu    sync.Mutex
	right map[string][sha256.Size]byte // by user: the digest of the password
	wrong [32][sha256.Size]byte        // the last ones refused
	next  int
}

// newAuth fails for a hash that is none, or asks for too much.
func newAuth(users []config.User, anonymous bool) (*auth, error) {
	a := &auth{
		users:  make(map[string]*account),
		secret: make([]byte, sha256.Size),
		turn:   make(chan struct{}, 1),
		right:  make(map[string][sha256.Size]byte),
		// An unknown name takes as long as a wrong password.
		nobody: &passwordHash{argonMemory, argonTime, argonThreads, make([]byte, argonSalt), make([]byte, argonKey)},
	}
	_, _ = rand.Read(a.secret) // never fails
	if anonymous {
		a.anonymous = &account{all: true}
	}
	for _, u := range users {
		h, err := parseHash(u.Password)
		if err != nil {
			return nil, fmt.Errorf("user %s: password: %w", u.Name, err)
		}
		acc := &account{name: u.Name, hash: h}
		for _, f := range u.Publish {
			acc.publish = append(acc.publish, mqtt.Filter(f))
		}
		for _, f := range u.Subscribe {
			acc.subscribe = append(acc.subscribe, mqtt.Filter(f))
		}
		a.users[u.Name] = acc
	}
	return a, nil
}

// account returns what the user may do, nil if there is none of the name; ""
// is the anonymous one.
func (a *auth) account(name string) *account {
	if acc := a.users[name]; acc != nil {
		return acc
	}
	if name == "" || len(a.users) == 0 {
		return a.anonymous
	}
	return nil
}

// check returns the account of a client that gave name and password, nil if
// they are wrong. It waits for its turn until deadline. A client without a
// name is anonymous; so is one with any name where no users are defined.
func (a *auth) check(name, password string, deadline time.Time) *account {
	acc := a.account(name)
	if acc != nil && acc.hash == nil {
		return acc
	}
	digest := a.digest(name, password)
	if right, known := a.known(name, digest); known {
		return given(right, acc)
	}
	limit := time.NewTimer(time.Until(deadline))
	defer limit.Stop()
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-limit.C:
		return nil
	}
	if right, known := a.known(name, digest); known {
		return given(right, acc) // the one before was the same client
	}
	if acc != nil && acc.hash.matches(password) {
		a.mu.Lock()
		a.right[name] = digest
		a.mu.Unlock()
		return acc
	}
	if acc == nil {
		a.nobody.matches(password)
	}
	a.mu.Lock()
	a.wrong[a.next] = digest
	a.next = (a.next + 1) % len(a.wrong)
	a.mu.Unlock()
	return nil
}

func given(right bool, acc *account) *account {
	if right {
		return acc
	}
	return nil
}

func (a *auth) digest(name, password string) (d [sha256.Size]byte) {
	h := hmac.New(sha256.New, a.secret)
	fmt.Fprintf(h, "%d:%s%s", len(name), name, password)
	h.Sum(d[:0])
	return d
}

// known reports whether the digest was checked before, and how it came out.
func (a *auth) known(name string, digest [sha256.Size]byte) (right, known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d, ok := a.right[name]; ok && hmac.Equal(d[:], digest[:]) {
		return true, true
	}
	return false, slices.Contains(a.wrong[:], digest)
}
