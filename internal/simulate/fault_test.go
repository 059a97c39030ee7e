package simulate

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"fieldgate/internal/modbus"
)

func TestFaultSchedule(t *testing.T) {
	const s = time.Second
	minute := Fault{Kind: Silent, Every: time.Minute, From: 20 * s, To: 30 * s}
	round := Fault{Kind: Silent, Every: time.Minute, From: 50 * s, To: 10 * s}
	once := Fault{Kind: Silent, From: 5 * s, To: 6 * s}
	from := Fault{Kind: Silent, From: 5 * s}
	nth := Fault{Kind: Silent, Nth: 3}
	for _, c := range []struct {
		name  string
		fault Fault
		n     int
		since time.Duration
		want  bool
	}{
		{"always", Fault{Kind: Silent}, 1, 0, true},
		{"before the window", minute, 1, 20*s - 1, false},
		{"window begins", minute, 1, 20 * s, true},
		{"window's last instant", minute, 1, 30*s - 1, true},
		{"window ends", minute, 1, 30 * s, false},
		{"the next minute's", minute, 1, 85 * s, true},
		{"round the end, late", round, 1, 55 * s, true},
		{"round the end, early", round, 1, 65 * s, true},
		{"round the end, outside", round, 1, 30 * s, false},
		{"once", once, 1, 5500 * time.Millisecond, true},
		{"once, later", once, 1, 65500 * time.Millisecond, false},
		{"from then on, before", from, 1, 4 * s, false},
		{"from then on", from, 1, 1e6 * s, true},
		{"first of three", nth, 1, 0, false},
		{"third", nth, 3, 0, true},
		{"sixth", nth, 6, 0, true},
		{"both must hold", Fault{Kind: Silent, Nth: 2, From: 5 * s}, 2, 4 * s, false},
	} {
		if err := c.fault.Validate(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := c.fault.holds(c.n, c.since, nil); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	random := rand.New(rand.NewPCG(1, 1))
	struck := 0
	for i := range 10000 {
		if (Fault{Kind: Silent, Probability: 0.1}).holds(i+1, 0, random) {
			struck++
		}
	}
	if struck < 900 || struck > 1100 {
		t.Errorf("a probability of 0.1 strikes %d of 10000", struck)
	}
	two := []Fault{{Kind: Late, Nth: 2}, {Kind: CRC}}
	if a, b := strike(two, 1, 0, nil), strike(two, 2, 0, nil); a.Kind != CRC || b.Kind != Late {
		t.Errorf("%v and %v strike, want the first that holds", a.Kind, b.Kind)
	}
	if f := strike(nil, 1, 0, nil); f != nil {
		t.Errorf("%v strikes out of nothing", f)
	}
}

func TestFaultValidate(t *testing.T) {
	for _, f := range []Fault{
		{}, {Kind: 99}, {Kind: Late, Delay: -1}, {Kind: Late, Probability: 1.5}, {Kind: Late, Probability: -1}, {Kind: Late, Nth: -1},
		{Kind: Late, Every: time.Minute}, {Kind: Late, Every: time.Second, To: time.Minute},
		{Kind: Late, From: 2, To: 1}, {Kind: Late, From: 2, To: 2},
	} {
		if f.Validate() == nil {
			t.Errorf("%+v is accepted", f)
		}
	}
	for i, name := range faultNames[1:] {
		if k, err := ParseFault(name); err != nil || k != FaultKind(i+1) || k.String() != name {
			t.Errorf("%s: %v, %v", name, k, err)
		}
	}
	if _, err := ParseFault(""); err == nil {
		t.Error("no fault is a fault")
	}
	if got := FaultKind(0).String(); got != "fault?" {
		t.Errorf("FaultKind(0) is %q", got)
	}
}

// TestFaultFrames holds what each fault makes of an answer, in each framing.
func TestFaultFrames(t *testing.T) {
	const unit, tx, latency = 7, 0x1234, 3 * time.Millisecond
	resp := modbus.PDU{3, 4, 1, 2, 3, 4}
	req := modbus.ReadRequest(modbus.HoldingRegisters, 0, 2)
	random := rand.New(rand.NewPCG(1, 1))
	for framing := modbus.FramingTCP; framing <= modbus.FramingASCII; framing++ {
		good := framing.Append(nil, tx, unit, resp)
		adu := framing.Append(nil, tx, unit, req)
		decode := func(b []byte) (uint16, modbus.UnitID, error) {
			var id uint16
			var u modbus.UnitID
			var err error
			switch framing {
			case modbus.FramingTCP:
				id, u, _, err = modbus.DecodeTCP(b)
			case modbus.FramingRTU:
				u, _, err = modbus.DecodeRTU(b)
			case modbus.FramingASCII:
				u, _, err = modbus.DecodeASCII(b)
			}
			return id, u, err
		}
		for kind := FaultKind(0); int(kind) < len(faultNames); kind++ {
			if kind == Refuse || kind == WrongID && framing != modbus.FramingTCP {
				continue // the one changes what is answered, not the frame; the other has nothing to change
			}
			for range 20 {
				f := &Fault{Kind: kind, Delay: time.Second}
				if kind == 0 {
					f = nil
				}
				r := f.frame(framing, tx, unit, resp, adu, latency, random)
				var all []byte
				total := time.Duration(0)
				for _, p := range r.parts {
					all = append(all, p.bytes...)
					total += p.after
				}
				id, u, err := decode(all)
				same := bytes.Equal(all, good)
				ok := false
				switch kind {
				case 0:
					ok = same && total == latency
				case Silent, Mute:
					ok = len(r.parts) == 0
				case Late:
					ok = same && total == latency+time.Second
				case WrongID:
					ok = err == nil && id != tx && u == unit
				case WrongUnit:
					ok = err == nil && u != unit
				case CRC:
					ok = errors.Is(err, modbus.ErrBadFrame) && len(all) == len(good)
				case Partial:
					ok = len(all) > 0 && len(all) < len(good) && bytes.HasPrefix(good, all)
				case Split:
					ok = same && len(r.parts) == 2 && r.parts[1].after == time.Second
				case Echo:
					ok = bytes.Equal(all, append(bytes.Clone(adu), good...)) && r.parts[0].echo
				case Noise:
					ok = len(all) > len(good) && bytes.HasSuffix(all, good)
				case Drop:
					ok = r.drop && len(all) == 0 && r.back == time.Second
				case Slow:
					ok = same && len(r.parts) == len(good) && total == latency+time.Duration(len(good)-1)*time.Second
				case Twice:
					ok = bytes.Equal(all, append(bytes.Clone(good), good...)) && r.parts[1].after == time.Second
				}
				if r.drop != (kind == Drop) || !ok {
					t.Fatalf("%v, %v: % x in %+v", framing, kind, all, r)
				}
			}
		}
	}
	for kind, want := range map[FaultKind]time.Duration{Late: time.Second, Drop: time.Second, Split: 5 * time.Millisecond, Slow: 5 * time.Millisecond, Twice: 0} {
		if got := (Fault{Kind: kind}).delay(); got != want {
			t.Errorf("%v: delay %v, want %v", kind, got, want)
		}
	}
	if got := (Fault{}).code(); got != modbus.ServerDeviceBusy {
		t.Errorf("code %v, want busy", got)
	}
}
