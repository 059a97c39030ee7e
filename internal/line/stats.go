package line

import (
	"sync/atomic"
)

// Stats are the counters of a line since New. They only grow.
type Stats struct {
	Requests   uint64 // sent, fences and broadcasts included
	Responses  uint64 // right answers, exceptions included
	Exceptions uint64 // of them, refusals
	Broadcasts uint64 // sent, to which no device answers
	Timeouts   uint64 // requests to which nothing came
	Fences     uint64 // shorter reads sent after a lost answer (see the package)

	// Answers that were not taken, by reason.
	Late        uint64 // right, but for a request given up before
	Repeated    uint64 // the last answer once more, after the next request
	UnknownID   uint64 // MBAP: a transaction id that was not asked
	WrongUnit   uint64 // a whole frame of another unit
	WrongAnswer uint64 // a whole frame of the unit that does not answer the request
	BadChecksum uint64 // CRC or LRC
	BadHeader   uint64 // MBAP: protocol id or length
	Partial     uint64 // a frame that ended too early
	Noise       uint64 // bytes that were part of no frame
	Echoes      uint64 // our own requests, heard again

	BytesSent, BytesReceived uint64 // on the wire, what was not taken included
	Connects                 uint64 // times the wire was opened

	Serial SerialErrors
}

// SerialErrors are the counters of the UART since its driver was loaded, zero
// where the driver keeps none. Framing and parity errors speak of a wrong mode
// or a bad cable, overruns of a computer too slow for the baud rate.
type SerialErrors struct {
	Framing, Parity, Overrun, BufferOverrun, Break uint32
}

// counters are Stats while they are being counted.
type counters struct {
	requests, responses, exceptions, broadcasts, timeouts, fences            atomic.Uint64
	late, unknownID, wrongUnit, wrongAnswer, badChecksum, badHeader, partial atomic.Uint64
	repeated, noise, echoes, bytesSent, bytesReceived, connects              atomic.Uint64
}

func (c *counters) stats() Stats {
	return Stats{
		Requests:      c.requests.Load(),
		Responses:     c.responses.Load(),
		Exceptions:    c.exceptions.Load(),
		Broadcasts:    c.broadcasts.Load(),
		Timeouts:      c.timeouts.Load(),
		Fences:        c.fences.Load(),
		Late:          c.late.Load(),
		Repeated:      c.repeated.Load(),
		UnknownID:     c.unknownID.Load(),
		WrongUnit:     c.wrongUnit.Load(),
		WrongAnswer:   c.wrongAnswer.Load(),
		BadChecksum:   c.badChecksum.Load(),
		BadHeader:     c.badHeader.Load(),
		Partial:       c.partial.Load(),
		Noise:         c.noise.Load(),
		Echoes:        c.echoes.Load(),
		BytesSent:     c.bytesSent.Load(),
		BytesReceived: c.bytesReceived.Load(),
		Connects:      c.connects.Load(),
	}
}
