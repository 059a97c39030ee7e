package simulate

import (
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Demo returns the plant of the demonstration: a boiler house with three devices
// on one RTU line, a chiller and a power meter on TCP. The flow meter on the
// line dies for seven seconds of each thirty and returns. Nothing in it is random
// but what seed decides.
func Demo(seed uint64) *Plant {
	device := func(name string, unit modbus.UnitID, latency time.Duration, points ...Point) *Device {
		for i := range points {
			points[i].ID = point.ID(name + "." + string(points[i].ID))
		}
		return New(Settings{Name: name, Unit: unit, Latency: latency, Points: points, Seed: seed, Strict: true, Identity: identity(name)})
	}
	flow := New(Settings{
		Name: "flow", Unit: 3, Latency: 2 * time.Millisecond, Seed: seed, Strict: true, Identity: identity("flow"),
		Faults: []Fault{{Kind: Silent, Every: 30 * time.Second, From: 6 * time.Second, To: 13 * time.Second}},
		Points: []Point{
			wave("flow.rate", "m³/h", modbus.InputRegisters, 0, point.Float32, "", Wave{Shape: Sine, Min: 12, Max: 18, Period: 17 * time.Second}),
			wave("flow.total", "m³", modbus.InputRegisters, 2, point.Uint32, "", Wave{Shape: Linear, Min: 120000, Max: 130000, Period: 24 * time.Hour}),
		},
	})
	return &Plant{Seed: seed, Buses: []*Bus{
		{
			Name: "line1", Kind: config.Serial, Framing: modbus.FramingRTU,
			Mode: config.SerialMode{Baud: 19200, DataBits: 8, Parity: 'E', StopBits: 1},
			Devices: Devices{
				device("boiler", 1, 3*time.Millisecond,
					wave("supply_temp", "°C", modbus.InputRegisters, 0, point.Int16, "0.1", Wave{Shape: Sine, Min: 62, Max: 78, Period: 30 * time.Second}),
					wave("return_temp", "°C", modbus.InputRegisters, 1, point.Int16, "0.1", Wave{Shape: Sine, Min: 48, Max: 56, Period: 30 * time.Second, Phase: 0.9}),
					wave("pressure", "bar", modbus.InputRegisters, 2, point.Uint16, "0.01", Wave{Shape: RandomWalk, Min: 1.2, Max: 1.9, Period: time.Second}),
					wave("burner", "", modbus.DiscreteInputs, 0, point.Bool, "", Wave{Shape: Square, Period: 20 * time.Second}),
					fixed("setpoint", "°C", modbus.HoldingRegisters, 0, point.Uint16, "0.1", point.Float64Value(70)),
				),
				device("pump", 2, 2*time.Millisecond,
					wave("speed", "rpm", modbus.InputRegisters, 0, point.Uint16, "", Wave{Shape: Triangle, Min: 900, Max: 1450, Period: 25 * time.Second}),
					wave("current", "A", modbus.InputRegisters, 1, point.Uint16, "0.01", Wave{Shape: Exponential, Min: 1, Max: 4.5, Period: 25 * time.Second}),
					fixed("enable", "", modbus.Coils, 0, point.Bool, "", point.BoolValue(true)),
				),
				flow,
			},
		},
		{
			Name: "chiller", Kind: config.TCP, Address: "127.0.0.1:0",
			Devices: Devices{device("chiller", 1, 5*time.Millisecond,
				wave("outlet", "°C", modbus.HoldingRegisters, 100, point.Float32, "", Wave{Shape: Parabola, Min: 6, Max: 8.5, Period: 40 * time.Second}),
				wave("load", "%", modbus.HoldingRegisters, 102, point.Uint16, "", Wave{Shape: Linear, Min: 20, Max: 95, Period: 45 * time.Second}),
				wave("defrost", "", modbus.DiscreteInputs, 0, point.Bool, "", Wave{Shape: Impulse, Period: time.Minute}),
				fixed("outlet_setpoint", "°C", modbus.HoldingRegisters, 110, point.Float32, "", point.Float64Value(7)),
			)},
		},
		{
			Name: "meter", Kind: config.TCP, Address: "127.0.0.1:0",
			Devices: Devices{device("meter", 1, 2*time.Millisecond,
				wave("voltage", "V", modbus.InputRegisters, 0, point.Float32, "", Wave{Shape: RandomWalk, Min: 226, Max: 236, Period: 500 * time.Millisecond}),
				wave("power", "kW", modbus.InputRegisters, 2, point.Float32, "", Wave{Shape: Sine, Min: 18, Max: 42, Period: 35 * time.Second}),
				wave("energy", "Wh", modbus.InputRegisters, 4, point.Uint64, "", Wave{Shape: Linear, Min: 123456789012, Max: 123457789012, Period: 24 * time.Hour}),
			)},
		},
	}}
}

func identity(name string) modbus.Identity {
	return modbus.Identity{
		ServerID: []byte(name),
		Objects:  []modbus.Object{{ID: 0, Value: []byte("Fieldgate")}, {ID: 1, Value: []byte("simulated " + name)}, {ID: 2, Value: []byte("1")}},
	}
}

// fixed is a point that keeps its value until it is written.
func fixed(name, unit string, t modbus.Table, addr uint16, kind point.Type, scale string, v point.Value) Point {
	p := Point{Value: v}
	p.ID, p.Unit, p.Table, p.Address, p.Type = point.ID(name), unit, t, addr, kind
	if scale != "" {
		p.Scale, _ = point.ParseDecimal(scale) // a constant of this file
	}
	return p
}

// wave is a point that moves.
func wave(name, unit string, t modbus.Table, addr uint16, kind point.Type, scale string, w Wave) Point {
	p := fixed(name, unit, t, addr, kind, scale, point.Value{})
	p.Wave = w
	return p
}
