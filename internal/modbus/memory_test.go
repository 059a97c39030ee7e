package modbus

import (
	"context"
	"sync"
)

// memory is a device of size words in each table, all of them zero at first.
type memory struct {
	mu     sync.Mutex
	size   int
	tables map[Table]map[uint16]uint16
}

func newMemory(size int) *memory {
	m := &memory{size: size, tables: map[Table]map[uint16]uint16{}}
	for t := Coils; t <= HoldingRegisters; t++ {
		m.tables[t] = map[uint16]uint16{}
	}
	return m
}

func (m *memory) Read(t Table, addr uint16, dst []uint16) error {
	if int(addr)+len(dst) > m.size {
		return IllegalDataAddress
	}
	for i := range dst {
		dst[i] = m.tables[t][addr+uint16(i)]
	}
	return nil
}

func (m *memory) Write(t Table, addr uint16, src []uint16) error {
	if int(addr)+len(src) > m.size {
		return IllegalDataAddress
	}
	for i, v := range src {
		m.tables[t][addr+uint16(i)] = v
	}
	return nil
}

// Do makes a memory an Endpoint, the same for every unit.
func (m *memory) Do(_ context.Context, _ UnitID, req PDU) (PDU, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Answer(req, m, testIdentity)
}

// Quick makes it one that answers reads at once, for all units but 3.
func (m *memory) Quick(unit UnitID, req PDU) bool {
	return unit != 3 && !req.Function().Writes()
}

func (m *memory) AppendQuick(ctx context.Context, dst []byte, unit UnitID, req PDU) ([]byte, error) {
	resp, err := m.Do(ctx, unit, req)
	return append(dst, resp...), err
}

func (m *memory) get(t Table, addr uint16) uint16 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tables[t][addr]
}

func (m *memory) set(t Table, addr uint16, values ...uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, v := range values {
		m.tables[t][addr+uint16(i)] = v
	}
}

var testIdentity = Identity{
	ServerID: []byte("test"),
	Objects: []Object{
		{0, []byte("Fieldgate")}, {1, []byte("FG")}, {2, []byte("1.0")},
		{4, []byte("test device")}, {0x80, make([]byte, 240)}, {0x81, []byte("last")},
	},
}

// endpointFunc is a function as an Endpoint.
type endpointFunc func(ctx context.Context, unit UnitID, req PDU) (PDU, error)

func (f endpointFunc) Do(ctx context.Context, unit UnitID, req PDU) (PDU, error) {
	return f(ctx, unit, req)
}
