package point

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// ErrReadOnly is what CheckWrite says of a point without write settings.
var ErrReadOnly = errors.New("the point is read only")

// Encode makes Words() registers of v, or one word of 0 or 1 for the bit
// tables: Decode gives v back. A bit field or half of a register comes with
// its bits in place and the others 0, see EncodeMask.
//
// A value that the point cannot hold is an error that names the limits;
// nothing is clamped. Between two steps of a scale, and between two floats,
// the nearest is taken, so that Decode gives back the value that the device
// will show; but a point of whole numbers (scale 1) refuses 75.5. Write.Step
// refuses what lies between steps.
//
// Numbers may come as text ("75.5"). A bool takes booleans, 1 and 0, and the
// texts true, false, on, off; with a map, the map's texts and raw numbers. A
// datetime takes RFC 3339 text of any zone, bytes their hexadecimal digits.
// Encode knows the registers only; CheckWrite adds what the settings allow.
func (p Point) Encode(v Value) ([]uint16, error) { return p.encode(v) }

func (p *Point) encode(v Value) ([]uint16, error) {
	if v.kind == None {
		return nil, errors.New("no value to write")
	}
	switch p.Type {
	case String:
		return p.encodeString(v.String())
	case Bytes:
		return p.encodeBytes(v.String())
	case Datetime:
		return p.encodeDatetime(v)
	}
	n, err := p.toPattern(v)
	if err != nil {
		return nil, err
	}
	switch {
	case p.BitCount > 0:
		return []uint16{uint16(n) << p.FirstBit}, nil
	case slices.Contains(p.Invalid, n):
		return nil, fmt.Errorf("%s would be written as %#x, which means \"no value\" here", v, n)
	case (p.Type == Int8 || p.Type == Uint8) && !p.LowByte:
		n <<= 8
	}
	return split(n, p.words(), p.Order), nil
}

// toPattern is the inverse of fromPattern.
func (p *Point) toPattern(v Value) (uint64, error) {
	if text, ok := v.Text(); ok && p.Map != nil {
		if raw, ok := p.rawOf(text); ok {
			v = IntValue(raw)
		}
	}
	if p.Type == Bool {
		return p.encodeBool(v)
	}
	num := v
	if text, ok := v.Text(); ok {
		if num, ok = parseNumber(strings.TrimSpace(text)); !ok {
			return 0, p.notANumber(text)
		}
	}
	neg, mag, exp, ok := num.parts()
	if !ok {
		return 0, fmt.Errorf("%s cannot be written: it is not a finite number", num)
	}
	if p.Type.class() == classFloat {
		return p.encodeFloat(num, neg, mag, exp)
	}
	return p.encodeInt(num, neg, mag, exp)
}

// rawOf returns the raw number of a text of the map, in any case if it is not
// there exactly.
func (p *Point) rawOf(text string) (int64, bool) {
	for _, e := range p.Map {
		if e.Text == text {
			return e.Raw, true
		}
	}
	for _, e := range p.Map {
		if strings.EqualFold(e.Text, text) {
			return e.Raw, true
		}
	}
	return 0, false
}

// notANumber says what text could have been written instead.
func (p *Point) notANumber(text string) error {
	if p.Map == nil {
		return fmt.Errorf("%q is not a number", text)
	}
	return fmt.Errorf("%q is not one of %s", text, p.mapTexts())
}

// mapTexts lists the texts of the map for a message.
func (p *Point) mapTexts() string {
	texts := make([]string, len(p.Map))
	for i, e := range p.Map {
		texts[i] = e.Text
	}
	return strings.Join(texts, ", ")
}

func (p *Point) encodeBool(v Value) (uint64, error) {
	if text, ok := v.Text(); ok {
		switch strings.ToLower(strings.TrimSpace(text)) {
		case "true", "on", "1":
			return 1, nil
		case "false", "off", "0":
			return 0, nil
		}
		if p.Map != nil {
			return 0, p.notANumber(text)
		}
		return 0, fmt.Errorf("%q is not true or false", text)
	}
	n, ok := v.Int64()
	if !ok || n < 0 || n > 1 {
		return 0, fmt.Errorf("%s is not true (1) or false (0)", v)
	}
	return uint64(n), nil
}

// limits returns the raw range of a type of whole numbers.
func (p *Point) limits() (least int64, most uint64) {
	switch p.Type {
	case Int8:
		return math.MinInt8, math.MaxInt8
	case Uint8:
		return 0, math.MaxUint8
	case Int16:
		return math.MinInt16, math.MaxInt16
	case Int32:
		return math.MinInt32, math.MaxInt32
	case Uint32:
		return 0, math.MaxUint32
	case Int64:
		return math.MinInt64, math.MaxInt64
	case Uint64:
		return 0, math.MaxUint64
	case BCD16:
		return 0, 9999
	case BCD32:
		return 0, 99999999
	}
	if p.BitCount > 0 {
		return 0, 1<<p.BitCount - 1
	}
	return 0, math.MaxUint16
}

// fromRaw returns the pattern of a raw whole number, or an error that names
// the type's range.
func (p *Point) fromRaw(neg bool, mag uint64) (uint64, error) {
	least, most := p.limits()
	if p.Type == Bool {
		most = 1
	}
	if neg && mag > magnitude(least) || !neg && mag > most {
		sign := ""
		if neg {
			sign = "-"
		}
		return 0, fmt.Errorf("%s%d is outside %d to %d (%s)", sign, mag, least, most, p.fieldName())
	}
	n := mag
	if neg {
		n = -mag
	}
	if p.Type == BCD16 || p.Type == BCD32 {
		return toBCD(n), nil
	}
	if w := p.width(); w < 64 {
		n &= 1<<w - 1
	}
	return n, nil
}

// fieldName is TypeName, or the number of bits of a bit field.
func (p *Point) fieldName() string {
	switch {
	case p.BitCount == 1:
		return "1 bit"
	case p.BitCount > 1:
		return strconv.Itoa(int(p.BitCount)) + " bits"
	}
	return p.TypeName()
}

// unscale returns (v - offset) / scale exactly.
func (p *Point) unscale(neg bool, mag uint64, exp int) *big.Rat {
	y := rat(neg, mag, exp)
	if p.Offset.Mant != 0 {
		y.Sub(y, p.Offset.rat())
	}
	if !p.scaleIsOne() {
		y.Quo(y, p.Scale.rat())
	}
	return y
}

// rat returns d exactly.
func (d Decimal) rat() *big.Rat { return rat(d.Mant < 0, magnitude(d.Mant), int(d.Exp)) }

// rat returns (-1)^neg × mag × 10^exp; |exp| is at most some 400, that of a
// float64 with all its digits.
func rat(neg bool, mag uint64, exp int) *big.Rat {
	m := new(big.Int).SetUint64(mag)
	if neg {
		m.Neg(m)
	}
	p := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(exp, -exp))), nil)
	if exp < 0 {
		return new(big.Rat).SetFrac(m, p)
	}
	return new(big.Rat).SetInt(m.Mul(m, p))
}

// encodeInt finds the raw whole number whose value is nearest to v.
func (p *Point) encodeInt(v Value, neg bool, mag uint64, exp int) (uint64, error) {
	if whole, ok := scaleUp(mag, max(exp, 0)); ok && exp >= 0 && !p.scaled() {
		n, err := p.fromRaw(neg && whole != 0, whole)
		if err != nil && p.Map != nil {
			return 0, fmt.Errorf("%w; one of %s", err, p.mapTexts())
		}
		return n, err
	}
	y := p.unscale(neg, mag, exp)
	raw := nearest(y)
	if p.scaleIsOne() && !p.Round && p.Offset.Places() == 0 {
		// Whole numbers only, but for the noise of a float computation.
		noise := new(big.Rat).Sub(y, new(big.Rat).SetInt(raw))
		if noise.Abs(noise).Cmp(big.NewRat(1, 1e9)) > 0 {
			return 0, fmt.Errorf("%s is not a whole number, and %s holds nothing else", v, p.fieldName())
		}
	}
	// Rounding to decimals, or to 18 digits, may have moved v across the middle
	// between two raws, or past the limits: of the neighbours and the limits,
	// the one that Decode shows as v. (The values next to the limits are there
	// because a limit itself is often the pattern of "no value".)
	least, most := p.limits()
	one := big.NewInt(1)
	best, found := uint64(0), false
	for i, r := range [...]*big.Int{
		raw, new(big.Int).Add(raw, one), new(big.Int).Sub(raw, one),
		big.NewInt(least), new(big.Int).SetUint64(most), big.NewInt(least + 1), new(big.Int).SetUint64(most - 1),
	} {
		m := new(big.Int).Abs(r)
		if !m.IsUint64() {
			continue
		}
		n, err := p.fromRaw(r.Sign() < 0, m.Uint64())
		if err != nil {
			continue
		}
		if p.shows(n, v) {
			return n, nil
		}
		if i == 0 {
			best, found = n, true
		}
	}
	if !found {
		return 0, p.outside(v)
	}
	return best, nil
}

// shows reports whether Decode makes v of the pattern n.
func (p *Point) shows(n uint64, v Value) bool {
	if p.BitCount == 0 && slices.Contains(p.Invalid, n) {
		return false
	}
	back, err := p.fromPattern(n)
	return err == nil && Equal(back, v)
}

// outside is the error for a value past the type's range, in the value's own
// terms.
func (p *Point) outside(v Value) error {
	least, most := p.limits()
	lo := p.scale(least < 0, magnitude(least), 0)
	hi := p.scale(false, most, 0)
	if p.Scale.Mant < 0 {
		lo, hi = hi, lo
	}
	return fmt.Errorf("%s is outside %s to %s (%s)", v, lo, hi, p.fieldName())
}

// nearest rounds to a whole number, half away from zero.
func nearest(y *big.Rat) *big.Int {
	num := new(big.Int).Abs(y.Num())
	num.Lsh(num, 1).Add(num, y.Denom())
	num.Quo(num, new(big.Int).Lsh(y.Denom(), 1))
	if y.Sign() < 0 {
		num.Neg(num)
	}
	return num
}

// encodeFloat finds the raw float whose value is nearest to v.
func (p *Point) encodeFloat(v Value, neg bool, mag uint64, exp int) (uint64, error) {
	if !p.scaled() {
		// The float itself, sign of zero and all.
		switch {
		case p.Type == Float32 && v.kind == KindFloat32, p.Type == Float64 && v.kind == KindFloat64:
			return v.num, nil
		case p.Type == Float64 && v.kind == KindFloat32:
			f, err := strconv.ParseFloat(v.String(), 64) // 25.4, not 25.399999618530273
			return math.Float64bits(f), err
		case p.Type == Float32 && v.kind == KindFloat64:
			return p.floatPattern(v, v.raw64())
		}
	}
	y := p.unscale(neg, mag, exp)
	f64, _ := y.Float64()
	f := f64
	if p.Type == Float32 {
		f32, _ := y.Float32()
		f = float64(f32)
	}
	n, err := p.floatPattern(v, f)
	if n == 1<<(p.width()-1) {
		n = 0 // no negative zero out of an underflow
	}
	if !p.scaled() || err == nil && p.shows(n, v) {
		return n, err
	}
	// A scaled value is rounded to 18 digits or to decimals: of the floats
	// beside, or the largest, the one that Decode shows as v.
	if err != nil {
		for _, f := range [...]float64{p.largest(), -p.largest()} {
			if m, _ := p.floatPattern(v, f); p.shows(m, v) {
				return m, nil
			}
		}
		return 0, err
	}
	for _, d := range [...]uint64{1, ^uint64(0), 2, ^uint64(1)} {
		if p.shows(n+d, v) {
			return n + d, nil
		}
	}
	return n, nil
}

// largest returns the largest finite number of a float type.
func (p *Point) largest() float64 {
	switch p.Type {
	case Float16:
		return 65504
	case Float32:
		return math.MaxFloat32
	}
	return math.MaxFloat64
}

// floatPattern returns the pattern of f in the point's type, or an error if it
// is past its range.
func (p *Point) floatPattern(v Value, f float64) (uint64, error) {
	n := math.Float64bits(f)
	switch p.Type {
	case Float32:
		n = uint64(math.Float32bits(float32(f)))
		f = float64(float32(f))
	case Float16:
		h := floatToHalf(f)
		n, f = uint64(h), halfToFloat(h)
	}
	if math.IsInf(f, 0) {
		return 0, fmt.Errorf("%s is outside the range of %s, ±%.5g before scale and offset", v, p.TypeName(), p.largest())
	}
	return n, nil
}

func (p *Point) encodeString(s string) ([]uint16, error) {
	s = strings.TrimRight(s, " ")
	switch {
	case !utf8.ValidString(s):
		return nil, errors.New("the text is not UTF-8")
	case strings.IndexByte(s, 0) >= 0:
		return nil, errors.New("the text holds a NUL, which ends a text in registers")
	}
	room := 2 * int(p.Length)
	b := []byte(s)
	if len(b) > room {
		// Text that was read as Latin-1 goes back as Latin-1.
		latin, ok := latin1(s)
		if !ok || len(latin) > room || utf8.Valid(latin) {
			return nil, fmt.Errorf("the text has %d bytes, %s holds %d", len(b), p.TypeName(), room)
		}
		b = latin
	}
	return p.packBytes(b), nil
}

// latin1 returns s in one byte a character.
func latin1(s string) (b []byte, ok bool) {
	for _, r := range s {
		if r > 0xFF {
			return nil, false
		}
		b = append(b, byte(r))
	}
	return b, true
}

func (p *Point) encodeBytes(s string) ([]uint16, error) {
	digits := strings.ReplaceAll(s, " ", "")
	if rest, ok := strings.CutPrefix(strings.ToLower(digits), "0x"); ok {
		digits = rest
	}
	b, err := hex.DecodeString(digits)
	if err != nil {
		return nil, fmt.Errorf("%q is not hexadecimal digits, two a byte", s)
	}
	if len(b) != 2*int(p.Length) {
		return nil, fmt.Errorf("%d bytes for the %d of %s", len(b), 2*p.Length, p.TypeName())
	}
	return p.packBytes(b), nil
}

// packBytes fills the point's registers with b and then NUL.
func (p *Point) packBytes(b []byte) []uint16 {
	regs := make([]uint16, p.Length)
	for i, c := range b {
		regs[i/2] |= uint16(c) << (8 * (1 - i%2))
	}
	if p.Order.swapsBytes() {
		for i := range regs {
			regs[i] = bits.ReverseBytes16(regs[i])
		}
	}
	return regs
}

func (p *Point) encodeDatetime(v Value) ([]uint16, error) {
	text, _ := v.Text()
	t, err := time.Parse(time.RFC3339, strings.TrimSpace(text))
	if err != nil {
		return nil, fmt.Errorf("%q is not a date and time; write 2025-11-05T14:30:15Z", v.String())
	}
	regs, err := p.encodeClock(t)
	if err != nil {
		return nil, err
	}
	if p.Layout.count() && slices.Contains(p.Invalid, join(regs, p.Order)) {
		return nil, fmt.Errorf("%s would be written as the pattern that means \"no value\" here", v)
	}
	return regs, nil
}

// Parse reads text as a value for this point: as ParseValue does, but what a
// text, a datetime or a map is written with stays text.
func (p Point) Parse(text string) Value {
	switch p.Type {
	case String, Bytes, Datetime:
		return TextValue(text)
	}
	if p.Map != nil {
		if _, ok := p.rawOf(text); ok {
			return TextValue(text)
		}
	}
	return ParseValue(text)
}

// CheckWrite reports whether v may be written to the point: the registers can
// hold it, a map names it, and the write settings allow it. The error wraps
// ErrReadOnly if the point has none.
func (p Point) CheckWrite(v Value) error {
	if p.Write == nil {
		return ErrReadOnly
	}
	regs, err := p.encode(v)
	if err != nil {
		return err
	}
	if p.Map != nil {
		// A number that the map does not name is read as its digits, but not written.
		n, err := p.toPattern(v)
		if err != nil {
			return err
		}
		if v, err = p.fromPattern(n); err != nil {
			return err
		}
		if _, ok := p.rawOf(v.String()); !ok {
			return p.notANumber(v.String())
		}
	}
	if only := p.Write.Only; len(only) > 0 && !slices.ContainsFunc(only, func(o Value) bool {
		allowed, err := p.encode(o)
		return err == nil && slices.Equal(allowed, regs)
	}) {
		return p.Write.notAllowed(v)
	}
	if err := p.Write.checkRange(v); err != nil || p.Write.Min == nil && p.Write.Max == nil {
		return err
	}
	// What the registers can hold may lie on the other side of a limit. But a float
	// that is off by its own last digit is at the limit, not past it.
	if p.Type.class() == classFloat {
		return nil
	}
	p.Round = false // is for show
	shown, err := p.Decode(regs)
	if err != nil {
		return err
	}
	bounds := Write{Min: p.Write.Min, Max: p.Write.Max}
	if err := bounds.checkRange(shown); err != nil {
		return fmt.Errorf("%s would be written as %s: %w", v, shown, err)
	}
	return nil
}

// Check reports whether the write settings allow v: min, max, step (counted
// from min, or from 0) and only. It knows nothing of the registers; a caller
// that has the point uses CheckWrite.
func (w *Write) Check(v Value) error {
	if len(w.Only) > 0 && !slices.ContainsFunc(w.Only, func(o Value) bool { return Equal(o, v) }) {
		return w.notAllowed(v)
	}
	return w.checkRange(v)
}

// notAllowed lists what the setting only allows.
func (w *Write) notAllowed(v Value) error {
	texts := make([]string, len(w.Only))
	for i, o := range w.Only {
		texts[i] = o.String()
	}
	return fmt.Errorf("%s is not one of %s", v, strings.Join(texts, ", "))
}

func (w *Write) checkRange(v Value) error {
	if w.Min == nil && w.Max == nil && w.Step == nil {
		return nil
	}
	if text, ok := v.Text(); ok {
		if v, ok = parseNumber(strings.TrimSpace(text)); !ok {
			return fmt.Errorf("%q is not a number", text)
		}
	}
	neg, mag, exp, ok := v.parts()
	switch {
	case !ok:
		return fmt.Errorf("%s is not a finite number", v)
	case w.Min != nil && less(v, DecimalValue(*w.Min)):
		return fmt.Errorf("%s is below the least, %s", v, w.Min)
	case w.Max != nil && less(DecimalValue(*w.Max), v):
		return fmt.Errorf("%s is above the most, %s", v, w.Max)
	case w.Step == nil:
		return nil
	}
	steps := rat(neg, mag, exp)
	from := ""
	if w.Min != nil {
		steps.Sub(steps, w.Min.rat())
		from = " from " + w.Min.String()
	}
	steps.Quo(steps, w.Step.rat())
	noise := new(big.Rat).Sub(steps, new(big.Rat).SetInt(nearest(steps)))
	if noise.Abs(noise).Cmp(big.NewRat(1, 1e9)) > 0 {
		return fmt.Errorf("%s is not a multiple of the step %s%s", v, w.Step, from)
	}
	return nil
}

func less(a, b Value) bool {
	c, ok := Compare(a, b)
	return ok && c < 0
}
