package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/simulate"
	"fieldgate/test/child"
	"fieldgate/test/madeup"
)

// TestModbus runs the scripts of testdata/modbus in this process, and with the real
// program. HOST stands for the address of testDevice.
func TestModbus(t *testing.T) {
	program := buildProgram(t)
	for _, path := range scripts(t, "testdata/modbus/*.txt") {
		t.Run(nameOf(path), func(t *testing.T) { runScript(t, path, inProcessWith) })
		t.Run(nameOf(path)+" with the real program", func(t *testing.T) {
			if *update {
				return
			}
			runScript(t, path, func(stdin string, args []string) (string, string, int) {
				return runProgram(t, program, stdin, nil, args...)
			})
		})
	}
}

// inProcess runs a command line as main does.
func inProcess(args []string) (stdout, stderr string, code int) { return inProcessWith("", args) }

// inProcessWith is inProcess with something typed.
func inProcessWith(stdin string, args []string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs}
	code = a.main(context.Background(), args)
	return out.String(), errs.String(), code
}

func runScript(t *testing.T, path string, run func(stdin string, args []string) (stdout, stderr string, code int)) {
	t.Helper()
	host := serveTestDevice(t)
	script{
		run:  run,
		fill: func(command string) string { return strings.ReplaceAll(command, "HOST", host) },
		tidy: func(output string) string { return strings.ReplaceAll(output, host, "HOST") },
	}.check(t, path)
}

// testDevice answers for three units:
//
//	unit 1: registers 0-99 of each table, 200-203 and 1000; identification
//	unit 2: like unit 1, but no function 22, 17 or 43
//	unit 3: takes writes, whose answers are lost; reads of register 90 on are
//	        answered, others never
//
// Holding register n holds n, and 10-11 a float32, 20 the number 254; 60 takes
// every write and keeps 1; 1000 is a clock. Input registers hold n × 2, coils
// are on where n is divisible by 3.
type testDevice struct {
	mu    sync.Mutex
	units map[modbus.UnitID]*testMemory
}

type testMemory struct {
	holding, input, coils, discrete [100]uint16
	tail                            [4]uint16
	clock                           [6]uint16
}

func newTestDevice() *testDevice {
	d := &testDevice{units: map[modbus.UnitID]*testMemory{}}
	for unit := modbus.UnitID(1); unit <= 3; unit++ {
		m := &testMemory{tail: [4]uint16{7, 8, 9, 10}, clock: [6]uint16{2025, 11, 5, 14, 30, 15}}
		for i := range m.holding {
			m.holding[i], m.input[i] = uint16(i), uint16(2*i)
			if i%3 == 0 {
				m.coils[i], m.discrete[i] = 1, 1
			}
		}
		m.holding[10], m.holding[11], m.holding[20] = 0x41CB, 0x3333, 254
		m.holding[30], m.holding[31] = 0x7FC0, 0 // NaN
		copy(m.holding[40:], []uint16{0x4669, 0x656C, 0x6467, 0x6174, 0x6500})
		d.units[unit] = m
	}
	return d
}

// table returns the memory from addr on, or nil.
func (m *testMemory) table(t modbus.Table, addr uint16, n int) []uint16 {
	var from []uint16
	switch {
	case t == modbus.HoldingRegisters && addr >= 1000:
		from, addr = m.clock[:], addr-1000
	case t == modbus.HoldingRegisters && addr >= 200:
		from, addr = m.tail[:], addr-200
	case t == modbus.HoldingRegisters:
		from = m.holding[:]
	case t == modbus.InputRegisters:
		from = m.input[:]
	case t == modbus.Coils:
		from = m.coils[:]
	default:
		from = m.discrete[:]
	}
	if int(addr)+n > len(from) {
		return nil
	}
	return from[addr:][:n]
}

func (m *testMemory) Read(t modbus.Table, addr uint16, dst []uint16) error {
	from := m.table(t, addr, len(dst))
	if from == nil {
		return modbus.IllegalDataAddress
	}
	copy(dst, from)
	return nil
}

func (m *testMemory) Write(t modbus.Table, addr uint16, src []uint16) error {
	to := m.table(t, addr, len(src))
	if to == nil {
		return modbus.IllegalDataAddress
	}
	copy(to, src)
	if t == modbus.HoldingRegisters && addr <= 60 && int(addr)+len(src) > 60 {
		m.holding[60] = 1
	}
	return nil
}

// Do implements modbus.Endpoint.
func (d *testDevice) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	m, f := d.units[unit], req.Function()
	if _, addr, _, _ := req.Span(); unit == 3 && !f.Writes() && addr < 90 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if unit == 3 && f.Writes() {
		_, _ = modbus.Answer(req, m, modbus.Identity{})
		return nil, modbus.ErrNoResponse
	}
	switch {
	case unit == 2 && (f == modbus.MaskWriteRegister || f == modbus.ReportServerID || f == modbus.EncapsulatedInterface):
		return nil, modbus.IllegalFunction
	case f == modbus.ReadExceptionStatus:
		return modbus.PDU{7, 0x12}, nil
	case f == modbus.GetCommEventCounter:
		return modbus.PDU{11, 0, 0, 1, 8}, nil
	case f == modbus.GetCommEventLog:
		return modbus.PDU{12, 9, 0xFF, 0xFF, 1, 8, 1, 0x21, 0xC2, 0x61, 0x04}, nil
	case f == modbus.Diagnostics && req[2] == 11:
		return modbus.PDU{8, 0, 11, 0, 42}, nil
	case f == modbus.ReadFIFOQueue:
		return modbus.PDU{24, 0, 6, 0, 2, 1, 0xB8, 0x12, 0x84}, nil
	case f == 0x41:
		return modbus.PDU{0x41, 9, 8, 7}, nil
	}
	return modbus.Answer(req, m, modbus.Identity{
		ServerID: []byte("ACME-1"),
		Objects:  []modbus.Object{{ID: 0, Value: []byte("Acme")}, {ID: 1, Value: []byte("X100")}, {ID: 2, Value: []byte("1.2")}, {ID: 0x80, Value: []byte{0, 1}}},
	})
}

// serveTestDevice serves a new testDevice on TCP until the test ends and
// returns HOST:PORT.
func serveTestDevice(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &modbus.Server{Endpoint: newTestDevice(), Units: func(u modbus.UnitID) bool { return u >= 1 && u <= 3 }}
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l, modbus.FramingTCP) }() // ends with cancel
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// TestModbusScanConfig: what a scan prints is a configuration.
func TestModbusScanConfig(t *testing.T) {
	host := serveTestDevice(t)
	for _, args := range [][]string{
		{"modbus", "scan", "regs", "tcp://" + host, "holding", "40", "10", "--type", "string(5)", "--yaml", "--pause", "0s"},
		{"modbus", "scan", "regs", "tcp://" + host, "coil", "1", "10", "--base", "1", "--yaml", "--pause", "0s"},
		{"modbus", "scan", "regs", "tcp://" + host, "holding", "0", "100", "--type", "int16", "--scale", "0.1", "--offset", "-40", "--decimals", "0", "--yaml", "--pause", "0s"},
		{"modbus", "scan", "regs", "tcp://" + host, "holding", "0", "5", "--bit", "3", "--yaml", "--pause", "0s"},
		{"modbus", "scan", "regs", "tcp://" + host, "holding", "10", "2", "--type", "float32", "--order", "CDAB", "--yaml", "--pause", "0s"},
		{"modbus", "scan", "units", "tcp://" + host, "1-2", "--pause", "0s"},
	} {
		out, errs, code := inProcess(args)
		if i := strings.Index(out, "buses:"); i >= 0 {
			out = out[i:]
		}
		if code != 0 {
			t.Fatalf("%v: exit code %d\n%s", args, code, errs)
		}
		path := filepath.Join(t.TempDir(), "fieldgate.yaml")
		if err := os.WriteFile(path, []byte(out+"uplinks: { cloud: { url: mqtts://broker.example } }\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(path)
		if err != nil {
			t.Errorf("%v prints what is no configuration: %v\n%s", args, err, out)
			continue
		}
		points := 0
		for _, d := range cfg.Devices {
			points += len(d.Points)
		}
		if devices := strings.Count(out, "unit: "); len(cfg.Devices) != devices || points != strings.Count(out, "at: ") {
			t.Errorf("%v: %d devices with %d points of\n%s", args, len(cfg.Devices), points, out)
		}
	}
}

// TestModbusSerial reads and writes over RTU and ASCII on a pseudo-terminal.
func TestModbusSerial(t *testing.T) {
	for _, framing := range []string{"rtu", "ascii"} {
		t.Run(framing, func(t *testing.T) {
			plant, err := simulate.LoadBytes("plant.yaml", []byte(`
buses:
  line1: { serial: "`+filepath.Join(t.TempDir(), "port")+`", framing: `+framing+`, mode: 115200-8N1 }
devices:
  boiler:
    bus: line1
    unit: 7
    points:
      temp: { at: holding 0, type: int16, scale: 0.1, value: 25.4 }
`))
			if err != nil {
				t.Fatal(err)
			}
			madeup.Run(t, plant)
			url := framing + "://" + plant.Bus("line1").Addr() + "?mode=115200-8N1"
			last := ""
			for _, tt := range []struct {
				args  string
				out   string
				code  int
				after bool // a broadcast
			}{
				{"modbus read " + url + " --unit 7 holding 0 --type int16 --scale 0.1", "holding 0 (40001)  25.4\n", 0, false},
				{"modbus write " + url + " --unit 7 holding 0 -5.5 --type int16 --scale 0.1", "holding 0 (40001)  -5.5\n", 0, false},
				{"modbus write " + url + " --unit 0 holding 0 70", "holding 0 (40001)  70\n", 0, false},
				{"modbus read " + url + " --unit 7 40001", "holding 0 (40001)  70\n", 0, true},
				{"modbus pdu " + url + " --unit 0 06 0000 0047", "> 06 00 00 00 47  write single register\nbroadcast  sent to every unit; none answers\n", 0, false},
				{"modbus read " + url + " --unit 7 40001", "holding 0 (40001)  71\n", 0, true},
				{"modbus read " + url + " --unit 8 40001 --timeout 50ms", "", exitNoPeer, false},
				{"modbus read " + url + " --unit 0 40001 --timeout 50ms", "", exitUsage, false},
			} {
				out, errs, code := inProcess(splitWords(tt.args))
				// Who closes a pseudo-terminal drops what its other end has not
				// read yet, and nobody answers a broadcast.
				for end := time.Now().Add(10 * time.Second); tt.after && out != tt.out && time.Now().Before(end); {
					inProcess(splitWords(last))
					out, errs, code = inProcess(splitWords(tt.args))
				}
				last = tt.args
				if out != tt.out || code != tt.code {
					t.Errorf("%s\nprints %q, exit code %d, want %q, %d\n%s", tt.args, out, code, tt.out, tt.code, errs)
				}
			}
			out, errs, code := inProcess([]string{"modbus", "scan", "units", url, "5-9", "--timeout", "250ms"})
			if code != 0 || !strings.Contains(out, "unit 7  ok") || strings.Count(out, "unit ") != 1 || !strings.Contains(out, "mode: 115200-8N1") {
				t.Errorf("scan units: exit code %d\n%s%s", code, out, errs)
			}
		})
	}
}

// TestModbusScanSilent: a search among many that say nothing keeps the connection
// over which it asks them.
func TestModbusScanSilent(t *testing.T) {
	plant, err := simulate.LoadBytes("plant.yaml", []byte(`
buses:
  rtu: { tcp: "127.0.0.1:0", framing: rtu }
  tcp: { tcp: "127.0.0.1:0" }
devices:
  "rtu-{unit}": { bus: rtu, unit: "1,9", points: &points { x: { at: holding 0 } } }
  "tcp-{unit}": { bus: tcp, unit: "1,9", points: *points }
  "dead-{unit}": { bus: tcp, unit: 2-8, points: *points, faults: [ { fault: silent } ] }
`))
	if err != nil {
		t.Fatal(err)
	}
	madeup.Run(t, plant)
	for _, url := range []string{"rtu+tcp://" + plant.Bus("rtu").Addr(), "tcp://" + plant.Bus("tcp").Addr(), "tcp://" + plant.Bus("tcp").Addr() + "?in_flight=2"} {
		out, errs, code := inProcess([]string{"modbus", "scan", "units", url, "1-9", "--timeout", "50ms", "--pause", "0s"})
		if code != 0 || !strings.Contains(out, "unit 1  ok") || !strings.Contains(out, "unit 9  ok") {
			t.Errorf("%s: exit code %d\n%s%s", url, code, out, errs)
		}
	}
}

// TestModbusLibmodbus speaks to a server that is not ours.
func TestModbusLibmodbus(t *testing.T) {
	server := filepath.Join(t.TempDir(), "server")
	if out, err := exec.Command("gcc", "-std=c11", "-D_DEFAULT_SOURCE", "-o", server, "../../test/peers/server.c", "-I/usr/include/modbus", "-lmodbus").CombinedOutput(); err != nil {
		t.Fatalf("the libmodbus server needs gcc and libmodbus-dev: %v\n%s", err, out)
	}
	// The port is free now; libmodbus cannot be asked for any free one.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(host)
	cmd := exec.Command(server, "tcp", port)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the server says %q, %v", line, err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }() // ends with the server
	url := "tcp://" + host
	for _, tt := range []struct{ args, out string }{
		{"read URL holding 0 3", "holding 0 (40001)  1\nholding 1 (40002)  4\nholding 2 (40003)  7\n"},
		{"read URL 30003", "input 2 (30003)  12\n"},
		{"read URL coil 2 2", "coil 2 (00003)  0\ncoil 3 (00004)  1\n"},
		{"read URL discrete 998 2", "discrete 998 (10999)  1\ndiscrete 999 (11000)  0\n"},
		{"write URL holding 0 42.5 --type float32", "holding 0 (40001)  42.5\n"},
		{"write URL holding 0 42.5 --type float64 --order CDAB", "holding 0 (40001)  42.5\n"},
		{"write URL holding 5 7 8 9", "holding 5 (40006)  7\nholding 6 (40007)  8\nholding 7 (40008)  9\n"},
		{"write URL coil 1 on off on", "coil 1 (00002)  1\ncoil 2 (00003)  0\ncoil 3 (00004)  1\n"},
		{"write URL coil 1 0", "coil 1 (00002)  0\n"},
		{"write URL holding 5 on --bit 15", "holding 5 (40006)  1\n"},
		{"read URL holding 5 --type int16", "holding 5 (40006)  -32761\n"},
		{"pdu URL 17 0000 0001 0000 0001 02 0007", "> 17 00 00 00 01 00 00 00 01 02 00 07  read/write multiple registers\n< 17 02 00 07\nholding 0 (40001)  7\n"},
	} {
		args := append([]string{"modbus"}, splitWords(strings.ReplaceAll(tt.args, "URL", url))...)
		if out, errs, code := inProcess(args); out != tt.out || code != 0 {
			t.Errorf("%s\nprints %q, exit code %d, want %q\n%s", tt.args, out, code, tt.out, errs)
		}
	}
	if out, errs, code := inProcess([]string{"modbus", "read", url, "holding", "0", "250", "--type", "uint32"}); code != 0 || strings.Count(out, "\n") != 250 || !strings.HasSuffix(out, "holding 498 (40499)  97977818\n") {
		t.Errorf("read in several requests: exit code %d\n%s%s", code, out, errs)
	}
	if out, errs, code := inProcess([]string{"modbus", "scan", "regs", url, "holding", "950", "100", "--json"}); code != 0 || strings.Count(out, "\n") != 50 {
		t.Errorf("scan regs: exit code %d, %d registers, want 50\n%s", code, strings.Count(out, "\n"), errs)
	}
}

func TestParseUnits(t *testing.T) {
	for in, want := range map[string][2]int{"1-32": {1, 32}, "7": {7, 7}, "247-255": {247, 255}} {
		if first, last, err := parseUnits(in); err != nil || first != want[0] || last != want[1] {
			t.Errorf("parseUnits(%q) = %d, %d, %v", in, first, last, err)
		}
	}
	for _, in := range []string{"", "0-5", "5-1", "1-256", "a", "1-2-3"} {
		if first, last, err := parseUnits(in); err == nil {
			t.Errorf("parseUnits(%q) = %d, %d", in, first, last)
		}
	}
}
