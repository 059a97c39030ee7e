package config

import (
	"log/slog"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Config is a whole, valid configuration with every default filled in. It is
// made by Load and never changed; parts take their own section by value.
type Config struct {
	Site    Site
	Buses   []Bus    // in file order
	Devices []Device // in file order, unit ranges expanded to one Device each
	Publish []Rule   // never empty
	Uplinks []Uplink
	Broker  *Broker // nil: none
	Servers []Server
	Status  Status
	Web     Web
	Log     Log

	Commands     []Command // in file order
	CommandRules CommandRules
	Settings     *Settings // nil: nothing is changed by messages

	Sums Sums // of what it was read from

	// Warnings are standing warnings: accepted, but someone should look
	// (plain text passwords, mqtt:// to a host that is not loopback).
	Warnings []Fault

	file   string           // the main file
	places map[string]Fault // where sections, devices and keys of rules stand
	files  []namedFile
	order  map[string]int // of the files
}

// Site names this gateway.
type Site struct {
	ID   string // default: host name
	Tags map[string]string
}

// BusKind is what a bus is made of.
type BusKind uint8

// The kinds of bus.
const (
	Serial BusKind = iota + 1
	TCP
	UDP
	Listen // the device dials in
)

// String returns the key that the configuration uses for the kind.
func (k BusKind) String() string {
	switch k {
	case Serial:
		return "serial"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case Listen:
		return "listen"
	}
	return "bus?"
}

// Bus is one serial line or one connection.
type Bus struct {
	Name    string
	Kind    BusKind
	Address string // path of the port, or HOST:PORT
	Framing modbus.Framing
	Mode    SerialMode // serial only
	RS485   RS485      // serial only

	Timeout        time.Duration // from the request's last byte to the response's first
	ConnectTimeout time.Duration
	Gap            time.Duration // least silence before a request; GapAuto: 3.5 characters on serial lines, 0 elsewhere
	Settle         time.Duration // wait after the port or connection opened
	InFlight       int           // 1-16 transactions at once; InFlightAuto: found out
	Retries        int           // repeats of a read within one poll
}

// Values of Bus.Gap and Bus.InFlight that leave the choice to the line.
const (
	GapAuto      time.Duration = -1
	InFlightAuto int           = 0
)

// SerialMode is the character format of a serial line.
type SerialMode struct {
	Baud     int
	DataBits int  // 7 or 8
	Parity   byte // 'N', 'E', 'O', 'M' (mark: always 1) or 'S' (space: always 0)
	StopBits int  // 1 or 2
}

// CharBits returns the number of bits one character takes on the wire, start
// bit included: 10 for 8N1, 11 for 8E1.
func (m SerialMode) CharBits() int {
	n := 1 + m.DataBits + m.StopBits
	if m.Parity != 'N' {
		n++
	}
	return n
}

// CharTime returns the time one character takes on the wire.
func (m SerialMode) CharTime() time.Duration {
	return time.Duration(m.CharBits()) * time.Second / time.Duration(m.Baud)
}

// RS485Mode says who switches the transmitter of a half-duplex line.
type RS485Mode uint8

// The three ways: the adapter itself, the kernel (TIOCSRS485), or the line by RTS.
const (
	RS485Off RS485Mode = iota
	RS485Kernel
	RS485RTS
)

// RS485 is the switching of a half-duplex transmitter.
type RS485 struct {
	Mode                    RS485Mode
	Invert                  bool // RTS low while sending
	DelayBefore, DelayAfter time.Duration
}

// Device is one unit id on a bus; or it is virtual, has no bus and lives in
// memory, and then only Name, Points and Sources mean anything.
type Device struct {
	Name string
	Bus  string
	Unit modbus.UnitID

	Timeout    time.Duration
	Retries    int
	Gap        time.Duration // GapAuto: the bus's
	MaxRegs    int           // longest read of registers, 1-125
	MaxBits    int           // longest read of bits, 1-2000
	Holes      int           // registers that may be read unasked; HolesAuto: by cost
	BackoffMin time.Duration // how seldom an offline device is tried
	BackoffMax time.Duration
	Points     []point.Point // every interval, order and default resolved
	Setup      []Setting     // written whenever the device comes back, in this order

	// Sources says what sets the points of a virtual device, one for each.
	Sources []Virtual
}

// HolesAuto lets the planner weigh the bytes of a hole against another request.
const HolesAuto = -1

// Payload is the form of a published message.
type Payload uint8

// The payload forms.
const (
	JSON Payload = iota
	Raw
	Full
	Batch
)

// Field is an optional member of a JSON payload.
type Field string

// The optional fields.
const (
	FieldQuality Field = "quality"
	FieldSeq     Field = "seq"
	FieldDevice  Field = "device"
	FieldPoint   Field = "point"
	FieldTags    Field = "tags"
)

// Rule says how points become messages.
type Rule struct {
	Points  []string // globs over device.point
	Topic   string   // with placeholders
	Payload Payload
	Fields  []Field
	When    When
	Every   time.Duration // timed instead of When; 0: When
	QoS     uint8
	Retain  bool
	To      []string // names of uplinks, Local; nil: all of them
	BadNull bool     // a failed read publishes null with its quality
}

// Local is the embedded broker's name in Rule.To.
const Local = "local"

// When says which samples of a point are published.
type When struct {
	Each      bool          // every poll
	AnyChange bool          // any change of value or quality
	Band      point.Decimal // dead band, absolute, or in percent of the last published value; zero: AnyChange
	Percent   bool          // Band is percent
	AtLeast   time.Duration // heartbeat: publish although unchanged; 0: never
	AtMost    time.Duration // least time between two messages of a point; 0: none
}

// Uplink is one upstream broker with its queue.
type Uplink struct {
	Name           string
	URLs           []string // mqtt:// mqtts:// ws:// wss://, tried in order; port and path filled in
	ClientID       string
	Username       string
	Password       SecretSource
	Keepalive      time.Duration
	ConnectTimeout time.Duration
	CleanSession   bool
	Proxy          string    // URL; "": the environment's
	AzureSAS       *AzureSAS // nil: none
	NoRetain       bool      // nothing is sent with the retain flag
	MaxQoS         uint8     // 1, or no limit: 0, 2
	NoStatus       bool      // nothing of Status goes there
	TLS            UplinkTLS
	Queue          Queue
	Bridge         []BridgeRule // in file order
}

// UplinkTLS is what an uplink presents and trusts.
type UplinkTLS struct {
	CA         string // file, PEM or DER; "": the system's
	Cert, Key  string // files: a PEM pair, or Cert one PKCS#12 file
	Password   SecretSource
	ServerName string
	ALPN       []string
	MinVersion uint16 // tls.VersionTLS12 or 13
	Insecure   bool
}

// Queue is what waits for one uplink.
type Queue struct {
	MaxBytes   int64
	MaxAge     time.Duration
	DropNewest bool          // when full; otherwise the oldest go
	Commit     time.Duration // 0: nothing accepted is ever lost
	LiveFirst  bool          // otherwise in order
	Rate       int64         // bytes/s of back-fill; 0: no limit
}

// Broker is the embedded broker.
type Broker struct {
	Listen        []BrokerListener
	TLS           BrokerTLS
	Users         []User
	Anonymous     bool
	Persist       bool
	MaxClients    int
	MaxPacket     int
	KeepaliveMax  time.Duration
	SessionExpiry time.Duration
}

// BrokerListener is one address the embedded broker listens on.
type BrokerListener struct {
	Scheme  string // mqtt, mqtts, ws, wss
	Address string // HOST:PORT
	Path    string // of ws and wss
}

// BrokerTLS is what the embedded broker presents, and whose clients it trusts.
type BrokerTLS struct{ Cert, Key, ClientCA string }

// User may connect to the embedded broker.
type User struct {
	Name      string
	Password  string   // argon2id hash, as "fieldgate passwd" prints it
	Publish   []string // topic filters
	Subscribe []string
}

// Status is what the gateway says of itself.
type Status struct {
	Topic string // {site} replaced
	Every time.Duration
}

// Log is what the gateway writes to its log.
type Log struct {
	Level  slog.Level
	Format string // auto, text, json, journal
}
