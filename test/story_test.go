package test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/bus"
	"fieldgate/internal/command"
	"fieldgate/internal/config"
	"fieldgate/internal/gateway"
	"fieldgate/internal/line"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/pipeline"
	"fieldgate/internal/point"
	"fieldgate/internal/publish"
	"fieldgate/internal/regmap"
	"fieldgate/internal/simulate"
	"fieldgate/internal/virtual"
)

var update = flag.Bool("update", false, "write what was seen into the golden files")

// Each file testdata/story-*.txt tells one story: a made-up plant, the gateway's
// configuration, what is done, and what is then seen on both sides of the box.
// See story for how to read one. After a change that is meant,
// "go test ./test -run TestStories -update" writes what is seen now; it is read
// in review.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/story-*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, path := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "story-"), ".txt")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			told, failed := tellAwake(t, string(text), !*update)
			switch {
			case failed != "":
				t.Errorf("%s\nseen up to then:\n%s", failed, told)
			case told == string(text):
			case *update:
				if err := os.WriteFile(path, []byte(told), 0o644); err != nil {
					t.Fatal(err)
				}
			default:
				t.Errorf("%s is not what was seen; got:\n%s", path, told)
			}
		})
	}
}

// tellAwake tells a story, and again if it came out otherwise while the machine
// stood still: time limits in stories are tens to hundreds of milliseconds, and
// a device that gets no processor for as long is rightly found dead.
func tellAwake(t *testing.T, text string, known bool) (told, failed string) {
	const (
		tries = 5
		awake = 10 * time.Millisecond // a probe has 25 ms
	)
	for try := 1; ; try++ {
		longest := watchStalls()
		told, failed = tell(t, text)
		stalled := longest()
		if failed == "" && (told == text || !known) || stalled < awake || try == tries {
			return told, failed
		}
		t.Logf("the machine stood still for %v, telling the story again; it had come out as:\n%s%s", stalled, told, failed)
		calm(awake)
	}
}

// calm waits, not for ever, until nothing is kept from running for as long as
// awake: a build beside us takes a while.
func calm(awake time.Duration) {
	for range 50 {
		longest := watchStalls()
		time.Sleep(300 * time.Millisecond)
		if longest() < awake {
			return
		}
	}
}

// watchStalls measures until the function it returns is called, which says for
// how long at most a goroutine or a thread was kept from running.
func watchStalls() (longest func() time.Duration) {
	const nap = time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	var most [2]time.Duration
	var watching sync.WaitGroup
	for i := range most {
		watching.Go(func() { // ends with ctx
			if i == 0 {
				runtime.LockOSThread() // as the simulated line does
			}
			for ctx.Err() == nil {
				begin := time.Now()
				time.Sleep(nap)
				most[i] = max(most[i], time.Since(begin)-nap)
			}
		})
	}
	return func() time.Duration {
		cancel()
		watching.Wait()
		return max(most[0], most[1])
	}
}

// story is the telling of one file. Its parts are
//
//	-- plant --      what simulate.Load reads; $dir is a folder of the test
//	-- gateway --    what the gateway reads; $NAME is the address of a plant's bus,
//	                 $server a free one for a Modbus server
//	-- story --      what is done, and below it what was seen
//
// What is done:
//
//	do start                   plant and gateway begin
//	do await pub N             N more messages
//	do await answer N          N more answers to commands
//	do await state DEVICE S    a device's state
//	do await wire TEXT         a request that has TEXT in it is on its way and not answered
//	do await late N            N answers, since the start, that nobody waited for any more
//	do await polls N           N whole polls of each device since the start
//	do read POINT...           read on demand, as bus.Set.Read
//	do write POINT VALUE       as bus.Set.Write
//	do set POINT VALUE         someone turns a knob at the device
//	do send TOPIC PAYLOAD      the broker upstream sends a message; $now is the time of day
//	do retained TOPIC PAYLOAD  ... one that it has kept
//	do local TOPIC PAYLOAD     someone on site publishes a message
//	do plc UNIT PDU            a PLC asks our Modbus server, over TCP
//	do stop                    the gateway stops as on SIGTERM
//
// What is seen:
//
//	> 01 04 0000 0001 crc      bytes the gateway sent; MBAP: the transaction id
//	                           first, or "id" where it does not matter
//	< 01 04 02 00fe crc        bytes it received; crc means that it is right
//	plc> 01 03 0000 0001       what a PLC sends, without the MBAP header
//	plc< 01 03 02 00fe         what it gets
//	state boiler online        a device's state, as of its state topic
//	= ok                       the outcome of a read or a write
//	pub plant/boiler/temp 25.4 q1
//	answer cmd/ack {…}         to a command, with await answer; by topic
//	record accepted boiler.setpoint = 55.5
//	                           what stands in the audit log, told at the end
//
// In a story that says "steady" before the first step, what is exchanged with a
// unit again and again is shown once, and anew after its state has changed; writes
// are always shown.
type story struct {
	t       *testing.T
	dir     string
	plant   *simulate.Plant
	cfg     *config.Config
	topics  []publish.Topic
	steady  bool
	lines   []*line.Line
	buses   *bus.Set
	desk    *command.Desk // nil: nothing can be written
	virtual *virtual.Set
	plc     net.Conn // to the first of our Modbus servers
	stop    func()   // the gateway
	outcome []string

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when anything is seen
	wire     []string      // seen and not told yet
	pubs     []string
	answers  []string
	records  []string
	open     *exchange // steady: not ended yet
	shown    map[modbus.UnitID]map[string]bool
	states   map[string]bus.State
	received int // messages since they were last told
	firstSeq int
}

// storyPatience is how long a step may wait.
const storyPatience = 30 * time.Second

// exchange is a request and what came after it.
type exchange struct {
	unit  modbus.UnitID
	tx    string
	write bool
	lines []string
}

// tell tells the story in text. What it says failed ends it before its time.
func tell(t *testing.T, text string) (out, failed string) {
	head, rest, ok1 := strings.Cut(text, "-- plant --\n")
	plantYAML, rest, ok2 := strings.Cut(rest, "-- gateway --\n")
	gatewayYAML, script, ok3 := strings.Cut(rest, "-- story --\n")
	if !ok1 || !ok2 || !ok3 {
		t.Fatal("a story has the parts -- plant --, -- gateway -- and -- story --")
	}
	s := &story{
		t: t, dir: t.TempDir(), changed: make(chan struct{}),
		shown: make(map[modbus.UnitID]map[string]bool), states: make(map[string]bus.State),
	}
	s.prepare(plantYAML, gatewayYAML)
	if head == "" {
		t.Fatal("a story begins with a line that says what it shows")
	}
	out = strings.TrimSuffix(text, script)
	defer func() {
		if s.stop != nil {
			s.stop()
		}
		s.plant.Close()
	}()
	for step := range strings.Lines(script) {
		step = strings.TrimSuffix(step, "\n")
		switch do, isStep := strings.CutPrefix(step, "do "); {
		case isStep:
			out += step + "\n"
			if failed = s.do(do); failed != "" {
				return out, failed
			}
			if s.pauses(do) {
				out += s.tellSeen(do)
			}
		case step == "steady":
			s.steady = true
			out += step + "\n"
		case step == "" || strings.HasPrefix(step, "#"):
			out += step + "\n"
		}
	}
	if s.stop != nil {
		t.Fatal(`a story ends with "do stop"`)
	}
	return out, ""
}

// prepare reads both configurations. The plant listens from now on, so that the
// gateway's can name its addresses.
func (s *story) prepare(plantYAML, gatewayYAML string) {
	var err error
	s.plant, err = simulate.LoadBytes("plant", []byte(strings.ReplaceAll(plantYAML, "$dir", s.dir)))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.plant.Listen(); err != nil {
		s.t.Fatal(err)
	}
	for _, b := range s.plant.Buses {
		gatewayYAML = strings.ReplaceAll(gatewayYAML, "$"+b.Name, b.Addr())
	}
	gatewayYAML = strings.ReplaceAll(gatewayYAML, "$server", fmt.Sprintf("127.0.0.1:%d", freePort(s.t)))
	path := filepath.Join(s.dir, "fieldgate.yaml")
	if err := os.WriteFile(path, []byte(gatewayYAML), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if s.cfg, s.topics, err = gateway.Load(path); err != nil {
		s.t.Fatal(err)
	}
}

// do does one step. It returns what a step waited for in vain.
func (s *story) do(what string) (failed string) {
	s.t.Helper()
	word, rest, _ := strings.Cut(what, " ")
	args := strings.Fields(rest)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	switch {
	case word == "start":
		s.start()
	case word == "stop":
		s.stop()
		s.stop = nil
	case word == "await" && len(args) == 2 && args[0] == "pub":
		n := s.number(args[1])
		return s.await(what, func() bool { return s.received >= n })
	case word == "await" && len(args) == 2 && args[0] == "answer":
		n := s.number(args[1])
		return s.await(what, func() bool { return len(s.answers) >= n })
	case word == "await" && len(args) == 3 && args[0] == "state":
		return s.await(what, func() bool { return s.states[args[1]].String() == args[2] })
	case word == "await" && len(args) > 1 && args[0] == "wire":
		text := strings.TrimPrefix(rest, "wire ")
		return s.await(what, func() bool {
			return s.open != nil && len(s.open.lines) == 1 && strings.Contains(s.open.lines[0], text)
		})
	case word == "await" && len(args) == 2 && args[0] == "late":
		n := s.number(args[1])
		return s.await(what, func() bool {
			got := 0
			for _, l := range s.lines {
				got += int(l.Stats().Late)
			}
			return got >= n
		})
	case word == "await" && len(args) == 2 && args[0] == "polls":
		n := s.number(args[1])
		return s.await(what, func() bool {
			for _, b := range s.buses.Status() {
				for _, d := range b.Devices {
					if d.Polls.Begun <= uint64(n) {
						return false
					}
				}
			}
			return true
		})
	case word == "read":
		ids := make([]point.ID, len(args))
		for i, a := range args {
			ids[i] = point.ID(a)
		}
		samples, err := s.buses.Read(ctx, ids...)
		for _, v := range samples {
			text := fmt.Sprintf("= %s %s", v.ID, v.Quality)
			if v.Quality != point.Bad {
				text += " " + v.Value.String()
			}
			s.outcome = append(s.outcome, text)
		}
		if err != nil {
			s.outcome = append(s.outcome, "= "+err.Error())
		}
	case word == "write" && len(args) == 2:
		if err := s.buses.Write(ctx, point.ID(args[0]), point.ParseValue(args[1])); err != nil {
			s.outcome = append(s.outcome, "= "+err.Error())
		} else {
			s.outcome = append(s.outcome, "= ok")
		}
	case word == "set" && len(args) == 2:
		id := point.ID(args[0])
		if err := s.plant.Device(id.Device()).Set(id.Name(), point.ParseValue(args[1])); err != nil {
			s.t.Fatal(err)
		}
	case word == "plc" && len(args) >= 2:
		return s.ask(args)
	case (word == "send" || word == "retained" || word == "local") && len(args) >= 1:
		topic, payload, _ := strings.Cut(strings.ReplaceAll(rest, "$now", point.Timestamp(time.Now())), " ")
		s.send(word, mqtt.Message{Topic: topic, Payload: []byte(payload), QoS: 1, Retain: word == "retained"})
	default:
		s.t.Fatalf("a story cannot do %q", what)
	}
	return ""
}

// send hands a message to the commands that want it.
func (s *story) send(how string, m mqtt.Message) {
	from := mqtt.Origin{Via: s.cfg.Uplinks[0].Name}
	if how == "local" {
		from = mqtt.Origin{Via: config.Local, User: "operator", Client: "panel"}
	}
	from.Reply = s.answer
	for _, topic := range s.virtual.Topics() {
		if topic.Name == m.Topic && slices.Contains(topic.From, from.Via) {
			s.virtual.Take(m.Topic, from.Via, m.Payload, m.Retain)
		}
	}
	if s.desk == nil {
		return
	}
	for _, sub := range s.desk.Subscriptions(from.Via) {
		if sub.Filter.Match(m.Topic) {
			sub.Handle(m, from)
		}
	}
}

// answer is told the answer to a command.
func (s *story) answer(m mqtt.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = append(s.answers, fmt.Sprintf("answer %s %s", m.Topic, s.mask(string(m.Payload))))
	s.seen()
}

// openDesk makes the gate for commands. Its record is told when it is closed.
func (s *story) openDesk(pipe *pipeline.Pipeline, log *slog.Logger) (finish func()) {
	if len(s.cfg.Commands)+len(s.cfg.Servers) == 0 {
		return func() {}
	}
	records, err := audit.Open(s.dir, audit.Options{OnRecord: func(r audit.Record) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.records = append(s.records, recordText(r))
	}}, log)
	if err != nil {
		s.t.Fatal(err)
	}
	s.desk = command.Open(s.dir, command.Options{
		Devices: s.cfg.Devices, Commands: s.cfg.Commands, Rules: s.cfg.CommandRules,
		Field: s, Last: pipe.Last, Audit: records,
	}, log)
	ctx, end := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = s.desk.Run(ctx) }) // ends with ctx
	return func() {
		end()
		running.Wait()
		if err := records.Close(); err != nil {
			s.t.Error(err)
		}
	}
}

// recordText shows a record without what differs from run to run.
func recordText(r audit.Record) string {
	text := fmt.Sprintf("record %s %s = %s", r.Event, r.Point, r.Value)
	for _, part := range [][2]string{{" was ", r.Previous}, {" id ", r.ID}, {" by ", r.By}, {" via ", r.Via}, {" ", r.Status}, {": ", r.Reason}} {
		if part[1] != "" {
			text += part[0] + part[1]
		}
	}
	return maskAges(text)
}

func (s *story) number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// start runs the plant, and the parts of a gateway from the line to a sink that
// keeps what it is given.
func (s *story) start() {
	log := slog.New(slog.DiscardHandler)
	var all sync.WaitGroup
	plant, endPlant := context.WithCancel(context.Background())
	all.Go(func() { // ends with plant
		if err := s.plant.Run(plant); err != nil {
			s.t.Error(err)
		}
	})

	image := regmap.NewImage(s.cfg.Servers)
	pipe := pipeline.New(image)
	feed := pipe.Subscribe("publish", 1000)
	sinks := make(map[string]mqtt.Sink)
	for _, u := range s.cfg.Uplinks {
		sinks[u.Name] = recorder{s}
	}
	publisher := publish.New(s.topics, s.cfg.Devices, sinks, log)
	var published, field sync.WaitGroup
	publishing, endPublish := context.WithCancel(context.Background())
	published.Go(func() { _ = publisher.Run(publishing, feed) }) // ends with publishing

	fieldCtx, endField := context.WithCancel(context.Background())
	var buses []*bus.Bus
	for _, c := range s.cfg.Buses {
		devices := slices.DeleteFunc(slices.Clone(s.cfg.Devices), func(d config.Device) bool { return d.Bus != c.Name })
		l := line.New(c, log)
		l.SetTrace(func(dir byte, b []byte, _ time.Time) { s.trace(c, devices, dir, b) })
		b := bus.New(c, devices, l, pipe.Emit, log)
		b.OnState = s.state
		s.lines, buses = append(s.lines, l), append(buses, b)
	}
	s.buses = bus.NewSet(buses...)
	s.virtual = virtual.New(s.cfg.Devices, s.dir, pipe.Emit, log)
	closeDesk := s.openDesk(pipe, log)
	closeServers := s.serve(image, buses, log)
	for i, b := range buses {
		field.Go(func() { _ = s.lines[i].Run(fieldCtx) }) // end with fieldCtx
		field.Go(func() { _ = b.Run(fieldCtx) })
	}
	field.Go(func() { _ = s.virtual.Run(fieldCtx) })
	s.stop = func() {
		closeServers()
		closeDesk()
		endField()
		field.Wait()
		endPublish()
		published.Wait()
		endPlant()
		all.Wait()
	}
}

// await waits until ok, which is called with mu held.
func (s *story) await(what string, ok func() bool) (failed string) {
	s.t.Helper()
	limit := time.NewTimer(storyPatience)
	defer limit.Stop()
	for {
		s.mu.Lock()
		done, changed := ok(), s.changed
		s.mu.Unlock()
		if done {
			return ""
		}
		select {
		case <-changed:
		case <-limit.C:
			return fmt.Sprintf("%s: not after %v; seen since the step before:\n%s", what, storyPatience, s.tellSeen("stop"))
		}
	}
}

// seen says that there is something new. mu is held.
func (s *story) seen() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// pauses reports whether nothing new happens by itself after a step, so that
// what was seen does not depend on the moment it is told.
func (s *story) pauses(do string) bool {
	word, _, _ := strings.Cut(do, " ")
	return word == "stop" || word == "await" || word == "plc" || !s.steady && (word == "read" || word == "write")
}

// tellSeen returns what was seen up to the end of a step and not told before.
// Messages come a moment after what they are made of, so they are told only when
// they were waited for.
func (s *story) tellSeen(do string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open != nil && len(s.open.lines) > 1 {
		s.endExchange() // one without an answer may still get it, or is cut off by the stop
	}
	seen := append(s.wire, s.outcome...)
	s.wire, s.outcome = nil, nil
	if do == "stop" || strings.HasPrefix(do, "await pub") {
		seen = append(seen, s.pubs...)
		s.pubs, s.received = nil, 0
	}
	if do == "stop" || strings.HasPrefix(do, "await answer") {
		// Several at once come in no certain order, but those on one topic do.
		slices.SortStableFunc(s.answers, func(a, b string) int {
			return strings.Compare(strings.Fields(a)[1], strings.Fields(b)[1])
		})
		seen = append(seen, s.answers...)
		s.answers = nil
	}
	if do == "stop" {
		slices.Sort(s.records) // refusals are recorded when the disk has time
		seen = append(seen, s.records...)
		s.records = nil
	}
	var b strings.Builder
	for _, l := range seen {
		b.WriteString(strings.TrimRight(l, " ") + "\n")
	}
	return b.String()
}

// recorder is the sink that keeps the story's messages.
type recorder struct{ s *story }

var (
	stamp = regexp.MustCompile(`"timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"`)
	seq   = regexp.MustCompile(`"seq":\d+`)
	took  = regexp.MustCompile(`"ms":\d+`)
	since = regexp.MustCompile(`, [0-9hms.]+( days)? ago`)
	until = regexp.MustCompile(`, next in [0-9hms.]+`)
	age   = regexp.MustCompile(` is [0-9hms.]+( days)? old,`)
)

// maskAges replaces the times from now in a text for people.
func maskAges(text string) string {
	text = since.ReplaceAllString(text, ", TIME ago")
	text = until.ReplaceAllString(text, ", next in TIME")
	return age.ReplaceAllString(text, " is TIME old,")
}

// mask replaces what differs from run to run in a payload: times, and the number
// that sequences begin with. mu is held.
func (s *story) mask(payload string) string {
	payload = stamp.ReplaceAllString(payload, `"timestamp":"TIME"`)
	payload = took.ReplaceAllString(payload, `"ms":MS`)
	payload = maskAges(payload)
	return seq.ReplaceAllStringFunc(payload, func(member string) string {
		n := s.number(strings.TrimPrefix(member, `"seq":`))
		if s.firstSeq == 0 {
			s.firstSeq = n
		}
		return fmt.Sprintf(`"seq":FIRST+%d`, n-s.firstSeq)
	})
}

func (r recorder) Deliver(_ context.Context, msgs ...mqtt.Message) error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	for _, m := range msgs {
		if err := m.Check(); err != nil {
			r.s.t.Errorf("publish made a message that nobody takes: %v", err)
		}
		text := fmt.Sprintf("pub %s %s q%d", m.Topic, r.s.mask(string(m.Payload)), m.QoS)
		if m.Retain {
			text += " retain"
		}
		r.s.pubs = append(r.s.pubs, text)
		r.s.received++
	}
	r.s.seen()
	return nil
}

func (s *story) state(device string, state bus.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endExchange()
	s.wire = append(s.wire, fmt.Sprintf("state %s %s", device, state))
	if s.states[device] != bus.Unknown {
		for _, d := range s.cfg.Devices {
			if d.Name == device {
				s.shown[d.Unit] = nil
			}
		}
	}
	s.states[device] = state
	s.seen()
}

// trace is told the bytes on a wire.
func (s *story) trace(c config.Bus, devices []config.Device, dir byte, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.seen()
	for len(b) > 0 {
		n := frameEnd(c.Framing, b)
		s.traceFrame(c, devices, dir, b[:n])
		b = b[n:]
	}
}

// frameEnd returns the length of the first whole frame in b, which may hold
// several, or all of b.
func frameEnd(f modbus.Framing, b []byte) int {
	for n := modbus.MinRTU; n < len(b) && f != modbus.FramingTCP; n++ {
		if _, pdu, _ := frame(f, '<', b[:n]); pdu != nil {
			return n
		}
	}
	return len(b)
}

func (s *story) traceFrame(c config.Bus, devices []config.Device, dir byte, b []byte) {
	unit, pdu, text := frame(c.Framing, dir, b)
	if pdu == nil {
		text = "not a frame: " + text
	}
	var tx string
	if s.steady && c.Framing == modbus.FramingTCP && pdu != nil {
		// The ids differ from poll to poll; what matters is whose they are.
		tx = text[:4]
		if dir == '>' || s.open != nil && tx == s.open.tx {
			text = "id" + text[4:]
		} else {
			text = "id of before" + text[4:]
		}
	}
	text = fmt.Sprintf("%c %s", dir, text)
	if note := noteOf(dir, unit, pdu, devices); note != "" {
		text = fmt.Sprintf("%-36s %s", text, note)
	}
	switch {
	case !s.steady:
		s.wire = append(s.wire, text)
	case dir == '>':
		s.endExchange()
		s.open = &exchange{unit, tx, pdu != nil && pdu.Function().Writes(), []string{text}}
	case s.open == nil:
		s.open = &exchange{unit, tx, false, []string{text}}
	default:
		s.open.lines = append(s.open.lines, text)
	}
}

// endExchange tells the exchange that has ended, if it is a new one. mu is held.
func (s *story) endExchange() {
	x := s.open
	if x == nil {
		return
	}
	s.open = nil
	if len(x.lines) == 1 {
		x.lines = append(x.lines, "< nothing")
	}
	key := strings.Join(x.lines, "\n")
	if s.shown[x.unit] == nil {
		s.shown[x.unit] = make(map[string]bool)
	}
	if x.write || !s.shown[x.unit][key] {
		s.shown[x.unit][key] = true
		s.wire = append(s.wire, x.lines...)
	}
}

// frame takes a frame apart and prints it. The PDU is nil when it is none.
func frame(f modbus.Framing, dir byte, b []byte) (unit modbus.UnitID, pdu modbus.PDU, text string) {
	var err error
	switch f {
	case modbus.FramingTCP:
		var tx uint16
		tx, unit, pdu, err = modbus.DecodeTCP(b)
		text = fmt.Sprintf("%04x %02x %s", tx, unit, printPDU(dir, pdu))
	case modbus.FramingASCII:
		unit, pdu, err = modbus.DecodeASCII(b)
		text = fmt.Sprintf("%02x %s lrc", unit, printPDU(dir, pdu))
	default:
		unit, pdu, err = modbus.DecodeRTU(b)
		text = fmt.Sprintf("%02x %s crc", unit, printPDU(dir, pdu))
	}
	if err != nil {
		return 0, nil, fmt.Sprintf("% x", b)
	}
	return unit, pdu, text
}

// printPDU prints a PDU in the groups that the specification speaks of: the
// function, byte counts, and everything else by registers.
func printPDU(dir byte, pdu modbus.PDU) string {
	if len(pdu) == 0 {
		return ""
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%02x", pdu[0])
	rest := []byte(pdu[1:])
	byWord := func(p []byte) {
		for ; len(p) >= 2; p = p[2:] {
			fmt.Fprintf(&b, " %02x%02x", p[0], p[1])
		}
		if len(p) == 1 {
			fmt.Fprintf(&b, " %02x", p[0])
		}
	}
	switch f := pdu.Function(); {
	case dir == '<' && f <= modbus.ReadDiscreteInputs:
		fmt.Fprintf(&b, " % x", rest)
	case dir == '<' && f <= modbus.ReadInputRegisters && len(rest) > 0:
		fmt.Fprintf(&b, " %02x", rest[0])
		byWord(rest[1:])
	case (f == modbus.WriteMultipleCoils || f == modbus.WriteMultipleRegisters) && len(rest) > 5:
		byWord(rest[:4])
		fmt.Fprintf(&b, " %02x", rest[4])
		byWord(rest[5:])
	default:
		byWord(rest)
	}
	return b.String()
}

// noteOf says for a reader what a frame is about: the points of a request, the
// words of a refusal.
func noteOf(dir byte, unit modbus.UnitID, pdu modbus.PDU, devices []config.Device) string {
	if pdu == nil {
		return ""
	}
	if pdu.Function()&0x80 != 0 && len(pdu) == 2 {
		return modbus.Exception(pdu[1]).Error()
	}
	table, start, count, ok := pdu.Span()
	if dir == '<' || !ok {
		return ""
	}
	verb := "reads"
	switch f := pdu.Function(); {
	case f == modbus.MaskWriteRegister:
		verb = "changes bits of"
	case f.Writes():
		verb = "writes"
	}
	var names []string
	for _, d := range devices {
		for _, p := range d.Points {
			if d.Unit == unit && p.Table == table && int(p.Address) < int(start)+count && int(start) < int(p.Address)+p.Words() {
				names = append(names, string(p.ID))
			}
		}
	}
	if len(names) > 3 {
		names = []string{names[0], "...", names[len(names)-1]}
	}
	return verb + " " + strings.Join(names, " ")
}

// The formatter is a part of the evidence: it must not hide a broken checksum.
func TestStoryShowsBrokenFrames(t *testing.T) {
	adu := modbus.AppendRTU(nil, 7, modbus.ReadRequest(modbus.HoldingRegisters, 100, 2))
	if _, _, text := frame(modbus.FramingRTU, '>', adu); text != "07 03 0064 0002 crc" {
		t.Errorf("a good frame is shown as %q", text)
	}
	adu[5] ^= 1
	if _, pdu, text := frame(modbus.FramingRTU, '>', adu); pdu != nil || text != "07 03 00 64 00 03 "+fmt.Sprintf("% x", adu[6:]) {
		t.Errorf("a frame with a wrong CRC is shown as %q", text)
	}
}
