package modbus

import (
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Where frames have no transaction ids, an answer that comes after the client has
// given up and asked something else would be taken for the answer to that. It is not
// sent; what was asked is done all the same.
func TestLateAnswerIsNotSent(t *testing.T) {
	const soon, slow = time.Millisecond, 2 * time.Second
	for _, f := range []Framing{FramingRTU, FramingASCII} {
		write, read := f.Append(nil, 0, 1, WriteRegisterRequest(5, 7)), f.Append(nil, 0, 1, ReadRequest(HoldingRegisters, 0, 1))
		others, answer := f.Append(nil, 0, 9, ReadRequest(HoldingRegisters, 0, 1)), f.Append(nil, 0, 1, PDU{3, 2, 0, 11})
		first := f.Append(nil, 0, 1, ReadRequest(HoldingRegisters, 1, 1))
		for _, row := range []struct {
			name         string
			takes        time.Duration // to do the write
			sends        []lump
			line, stream []byte // all answers on a serial line and on a connection
		}{
			{"in time", soon, []lump{{0, write}, {slow, read}}, join(write, answer), join(write, answer)},
			{"late", slow, []lump{{0, write}, {2 * slow, read}}, join(write, answer), join(write, answer)},
			{"the same is asked", slow, []lump{{0, write}, {time.Second, write}}, write, write},
			{"something else is asked", slow, []lump{{0, write}, {time.Second, read}}, answer, answer},
			{"another is asked", slow, []lump{{0, write}, {time.Second, others}}, nil, nil},
			{"much else is asked", slow, []lump{{0, write}, {time.Second, join(first, others, first, read)}}, answer, answer},
			{"something is just being asked", slow, []lump{{0, write}, {slow - 10*time.Millisecond, read[:3]}, {30 * time.Millisecond, read[3:]}}, answer, answer},
			{"noise", slow, []lump{{0, write}, {time.Second, []byte{0}}}, write, nil},
		} {
			for _, serial := range []bool{true, false} {
				want := row.line
				if !serial {
					want = row.stream
				}
				t.Run(f.String()+" "+row.name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						m := newMemory(100)
						m.set(HoldingRegisters, 0, 11)
						s := &Server{Units: func(u UnitID) bool { return u == 1 }, Endpoint: endpointFunc(func(ctx context.Context, unit UnitID, req PDU) (PDU, error) {
							if req.Function().Writes() {
								time.Sleep(row.takes)
							}
							return m.Do(ctx, unit, req)
						})}
						client, server := net.Pipe()
						ctx, cancel := context.WithCancel(t.Context())
						var got bytes.Buffer
						var all sync.WaitGroup
						all.Go(func() { // ends with ctx
							if serial {
								_ = s.ServeSerial(ctx, server, f, nil, charTime)
								return
							}
							s.serve(ctx, &session{conn: server, from: server.RemoteAddr(), since: time.Now()}, f)
						})
						all.Go(func() { io.Copy(&got, client) }) // ends with the connection
						for _, l := range row.sends {
							time.Sleep(l.pause)
							if _, err := client.Write(l.b); err != nil {
								t.Fatal(err)
							}
						}
						time.Sleep(3 * slow)
						cancel()
						client.Close()
						all.Wait()
						if !bytes.Equal(got.Bytes(), want) {
							t.Errorf("serial line %v: answers % x, want % x", serial, got.Bytes(), want)
						}
						if m.get(HoldingRegisters, 5) != 7 {
							t.Error("the write was not done")
						}
					})
				})
			}
		}
	}
}

// So it is with datagrams: of what is asked one after the other behind a slow
// request, only the last is answered. Modbus TCP has its transaction ids.
func TestLateAnswerIsNotSentByUDP(t *testing.T) {
	for _, f := range []Framing{FramingRTU, FramingASCII, FramingTCP} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory(100)
			m.set(HoldingRegisters, 0, 11)
			s := &Server{Endpoint: endpointFunc(func(ctx context.Context, unit UnitID, req PDU) (PDU, error) {
				if req.Function().Writes() {
					time.Sleep(2 * time.Second)
				}
				return m.Do(ctx, unit, req)
			})}
			c := &mail{in: make(chan []byte)}
			ctx, cancel := context.WithCancel(t.Context())
			var served sync.WaitGroup
			served.Go(func() { _ = s.ServeUDP(ctx, c, f) }) // ends with ctx
			write := f.Append(nil, 1, 1, WriteRegisterRequest(5, 7))
			c.in <- write
			want := [][]byte{f.Append(nil, 3, 1, PDU{3, 2, 0, 11})}
			if f == FramingTCP {
				want = append([][]byte{write, f.Append(nil, 2, 1, PDU{3, 2, 0, 0})}, want...)
			}
			for i := range uint16(2) {
				time.Sleep(500 * time.Millisecond)
				c.in <- f.Append(nil, 2+i, 1, ReadRequest(HoldingRegisters, 1-i, 1))
			}
			time.Sleep(3 * time.Second)
			cancel()
			served.Wait()
			if !slices.EqualFunc(c.out, want, bytes.Equal) {
				t.Errorf("%s: answers % x, want % x", f, c.out, want)
			}
		})
	}
}

// mail is a socket of datagrams, all of one client.
type mail struct {
	net.PacketConn
	in     chan []byte
	out    [][]byte
	closed sync.Once
}

func (m *mail) ReadFrom(p []byte) (int, net.Addr, error) {
	b, open := <-m.in
	if !open {
		return 0, nil, net.ErrClosed
	}
	return copy(p, b), &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1502}, nil
}

func (m *mail) WriteTo(p []byte, _ net.Addr) (int, error) {
	m.out = append(m.out, bytes.Clone(p))
	return len(p), nil
}

func (m *mail) Close() error {
	m.closed.Do(func() { close(m.in) })
	return nil
}
