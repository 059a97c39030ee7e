package modbus

// Framing is how a PDU is wrapped for its wire.
type Framing uint8

// The three framings. The zero value is MBAP, the framing of Modbus TCP.
const (
	FramingTCP   Framing = iota // MBAP header (APP 4.1)
	FramingRTU                  // unit, PDU, CRC; frames told apart by silence (SER 2.5.1)
	FramingASCII                // ':' hexadecimal LRC CR LF (SER 2.5.2)
)

// String returns the word the configuration uses: tcp, rtu, ascii.
func (f Framing) String() string {
	switch f {
	case FramingRTU:
		return "rtu"
	case FramingASCII:
		return "ascii"
	}
	return "tcp"
}
