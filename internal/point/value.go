package point

// Decimal is the exact number Mant × 10^Exp.
type Decimal struct {
	Mant int64
	Exp  int8
}

// Value is one value: a number (64-bit integers are exact), a boolean or text.
// The zero Value is no value. Values are comparable with == and are copied
// without allocation.
type Value struct {
	kind Kind
	exp  int8
	num  uint64
	text string
}

// Kind says what a Value holds.
type Kind uint8

// The kinds. None is the zero Value's.
const (
	None Kind = iota
	KindInt
	KindUint
	KindFloat32
	KindFloat64
	KindDecimal
	KindBool
	KindText
)
