package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// hidden is what a Secret shows of itself.
const hidden = "***"

// Secret is a password or key. However it is printed, it shows as ***; only
// Reveal gives it away. The zero value is empty. Compare secrets with
// reflect.DeepEqual or Reveal, not with ==.
type Secret struct {
	// A pointer, because fmt cannot call the methods below on what it finds in
	// an unexported field, and would print a string that stands there.
	value *string
}

// NewSecret hides value.
func NewSecret(value string) Secret { return Secret{&value} }

// Reveal returns the secret itself, for the one call that needs it.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// String returns ***.
func (s Secret) String() string { return hidden }

// GoString returns ***.
func (s Secret) GoString() string { return hidden }

// Format writes *** for every verb, so that %d and %x do not look inside.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, hidden) }

// MarshalText returns ***.
func (s Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// MarshalJSON returns "***".
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(hidden) }

// LogValue returns ***.
func (s Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// SecretSource says where a secret comes from. The zero value is no secret. It
// is read when it is used, so that a rotated file is taken up.
type SecretSource struct {
	Plain      Secret
	File       string
	Env        string
	Credential string // systemd
}

// IsZero reports whether there is no secret.
func (s SecretSource) IsZero() bool {
	return s.Plain.IsZero() && s.File == "" && s.Env == "" && s.Credential == ""
}

// Path returns the file that the secret is read from, "" where it is none.
func (s SecretSource) Path() string {
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); s.File == "" && s.Credential != "" && dir != "" {
		return filepath.Join(dir, s.Credential)
	}
	return s.File
}

// maxSecret is the longest secret file in bytes.
const maxSecret = 64 << 10

// Read returns the secret, without the line break that a file may end with. An
// error says what could not be read; it never holds the secret. Without a
// source it returns the empty secret.
func (s SecretSource) Read() (Secret, error) {
	switch {
	case s.File != "":
		return readSecret(s.File)
	case s.Env != "":
		v, ok := os.LookupEnv(s.Env)
		if !ok {
			return Secret{}, fmt.Errorf("secret: the environment has no variable %s", s.Env)
		}
		return NewSecret(v), nil
	case s.Credential != "":
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return Secret{}, fmt.Errorf("secret: credential %s: no credentials from systemd; add LoadCredential=%s:PATH to the unit", s.Credential, s.Credential)
		}
		return readSecret(filepath.Join(dir, s.Credential))
	}
	return s.Plain, nil
}

func readSecret(path string) (Secret, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Secret{}, fmt.Errorf("secret: %w", err)
	}
	if info.Size() > maxSecret {
		return Secret{}, fmt.Errorf("secret: %s has %d bytes, more than %d", path, info.Size(), maxSecret)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return Secret{}, fmt.Errorf("secret: %w", err)
	}
	return NewSecret(strings.TrimRight(string(text), "\r\n")), nil
}
