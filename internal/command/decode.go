package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Bounds of a payload. No command of a person or a program comes near them.
const (
	maxPayload = 64 << 10
	maxID      = 128 // bytes
	maxFields  = 256

	ttlMost = 366 * 24 * time.Hour
)

// request is what a payload asks for.
type request struct {
	id      string
	issued  time.Time // zero: it does not say
	expires time.Time // zero: it does not say
	counted bool      // expires counts from the arrival, so that no clock is needed for it
	writes  []Write
	only    string // of a read: one of the points
}

// field is one member of a JSON object.
type field struct {
	key   string
	value point.Value // none for null and objects
	text  string      // as it is written, of scalars
	null  bool
	inner []field // of an object
}

// decode reads the payload of a message on topic as the command c says. The
// request holds the id also where the rest is wrong. point finds a point; now is
// when the message came.
func decode(c *config.Command, targets []config.Target, payload []byte, look lookup, now time.Time) (request, error) {
	var r request
	if len(payload) > maxPayload {
		return r, errTooLong(len(payload))
	}
	if !utf8.Valid(payload) {
		return r, errors.New("the payload is not UTF-8 text")
	}
	text := strings.TrimSpace(string(payload))
	if c.Kind == config.MatchCommand && text == strings.TrimSpace(c.Match) {
		return r, r.fit(c, targets, c.Match) // whatever it looks like: it may be JSON itself
	}
	if !strings.HasPrefix(text, "{") {
		return decodePlain(c, targets, text)
	}
	fields, err := parseObject(text)
	if err != nil {
		return r, fmt.Errorf("the payload is not a JSON object that can be read: %w", err)
	}
	rest, err := r.envelope(fields, now)
	if err != nil {
		return r, err
	}
	switch c.Kind {
	case config.ValueCommand:
		err = r.value(targets, rest)
	case config.MatchCommand:
		err = r.match(c, targets, rest)
	case config.StructuredCommand:
		err = r.structured(targets, rest, look)
	case config.RecipeCommand:
		err = r.recipe(targets, rest)
	case config.ReadCommand:
		err = r.read(rest)
	}
	return r, err
}

// errTooLong says that a payload of so many bytes is not read.
func errTooLong(length int) error {
	return fmt.Errorf("the payload has %d bytes, at most %d are taken", length, maxPayload)
}

// decodePlain reads a payload that is no object: a bare value, or a text.
func decodePlain(c *config.Command, targets []config.Target, text string) (request, error) {
	var r request
	value := point.Value{}
	if strings.HasPrefix(text, `"`) {
		var s string
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return r, fmt.Errorf("the payload begins like a JSON string, but is none: %w", err)
		}
		text, value = s, point.TextValue(s)
	}
	switch c.Kind {
	case config.ReadCommand:
		return r, nil // whatever it says, it asks
	case config.MatchCommand:
		return r, r.fit(c, targets, text)
	case config.ValueCommand:
		if text == "" && value.IsZero() {
			return r, errors.New("the payload is empty; it must be the value")
		}
		for _, t := range targets {
			r.writes = append(r.writes, Write{Point: t.Point, Value: value, Text: text})
		}
		return r, nil
	}
	return r, fmt.Errorf("the payload %s is not a JSON object", quote(text))
}

// fit takes the values of a match whose text is given.
func (r *request) fit(c *config.Command, targets []config.Target, text string) error {
	if text != c.Match {
		return fmt.Errorf("the payload %s is not %s", quote(text), quote(c.Match))
	}
	for _, t := range targets {
		r.writes = append(r.writes, Write{Point: t.Point, Value: t.Value})
	}
	return nil
}

// envelope takes out what every command may say: id and times. It returns the
// other fields.
func (r *request) envelope(fields []field, now time.Time) (rest []field, err error) {
	var ttl time.Duration
	for _, f := range fields {
		if f.key == "id" {
			// First of all, so that even a refusal can name it.
			if err := r.setID(f); err != nil {
				return nil, err
			}
		}
	}
	for _, f := range fields {
		switch f.key {
		case "id":
		case "timestamp":
			r.issued, err = f.time()
		case "expires":
			r.expires, err = f.time()
		case "ttl":
			ttl, err = f.seconds()
		default:
			rest = append(rest, f)
		}
		if err != nil {
			return nil, err
		}
	}
	if ttl > 0 {
		from := now
		if !r.issued.IsZero() {
			from = r.issued
		}
		if end := from.Add(ttl); r.expires.IsZero() || end.Before(r.expires) {
			r.counted = r.issued.IsZero() && r.expires.IsZero()
			r.expires = end
		}
	}
	return rest, nil
}

func (r *request) setID(f field) error {
	_, isText := f.value.Text()
	_, isNumber := f.value.Decimal()
	switch {
	case f.null:
		return nil
	case !isText && (!isNumber || f.value.Kind() == point.KindBool):
		return fmt.Errorf("id must be a text or a number")
	case f.text == "":
		return errors.New("id is empty")
	case len(f.text) > maxID:
		return fmt.Errorf("id has %d bytes, at most %d are taken", len(f.text), maxID)
	}
	r.id = f.text
	return nil
}

// time reads a time of RFC 3339.
func (f field) time() (time.Time, error) {
	text, ok := f.value.Text()
	if !ok {
		return time.Time{}, fmt.Errorf("%s must be a time such as \"2025-11-05T14:30:15Z\"", f.key)
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil || t.Year() < 1970 {
		return time.Time{}, fmt.Errorf("%s: %s is not a time such as \"2025-11-05T14:30:15Z\"", f.key, quote(text))
	}
	return t, nil
}

// seconds reads a number of seconds.
func (f field) seconds() (time.Duration, error) {
	s, ok := f.value.Float64()
	if !ok || f.value.Kind() == point.KindBool || s <= 0 || s > ttlMost.Seconds() {
		return 0, fmt.Errorf("%s must be a number of seconds above 0 and up to %.0f, a year", f.key, ttlMost.Seconds())
	}
	return time.Duration(s * float64(time.Second)), nil
}

// takeValue takes value and unit out of fields.
func takeValue(fields []field) (w Write, rest []field, err error) {
	found := false
	for _, f := range fields {
		switch f.key {
		case "value":
			found = true
			w, err = f.write(w)
		case "unit":
			w.Unit, err = f.words()
		default:
			rest = append(rest, f)
		}
		if err != nil {
			return w, nil, err
		}
	}
	if !found {
		return w, nil, errors.New("value is missing")
	}
	return w, rest, nil
}

// write puts the value of f into w.
func (f field) write(w Write) (Write, error) {
	switch {
	case f.null:
		return w, fmt.Errorf("%s is null, which is no value to write", f.key)
	case f.inner != nil:
		return w, fmt.Errorf("%s is an object, and a single value is wanted", f.key)
	}
	w.Value, w.Text = f.value, f.text
	return w, nil
}

// words reads a text.
func (f field) words() (string, error) {
	s, ok := f.value.Text()
	if !ok {
		return "", fmt.Errorf("%s must be a text", f.key)
	}
	return s, nil
}

// unknown refuses what is left over: what is not understood may have been meant.
func unknown(fields []field, known ...string) error {
	if len(fields) == 0 {
		return nil
	}
	return fmt.Errorf("%s is not known here; known: %s id timestamp expires ttl", quote(fields[0].key), strings.Join(known, " "))
}

func (r *request) value(targets []config.Target, fields []field) error {
	w, rest, err := takeValue(fields)
	if err != nil {
		return err
	}
	for _, t := range targets {
		w.Point = t.Point
		r.writes = append(r.writes, w)
	}
	return unknown(rest, "value", "unit")
}

func (r *request) match(c *config.Command, targets []config.Target, fields []field) error {
	w, rest, err := takeValue(fields)
	if err != nil {
		return err
	}
	if err := unknown(rest, "value"); err != nil {
		return err
	}
	return r.fit(c, targets, w.Text)
}

func (r *request) recipe(targets []config.Target, fields []field) error {
	for _, t := range targets { // in the order of the configuration
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == t.Key })
		if i < 0 {
			return fmt.Errorf("%s is missing; a recipe is written as a whole", t.Key)
		}
		f := fields[i]
		fields = slices.Delete(slices.Clone(fields), i, i+1)
		w := Write{Point: t.Point}
		var err error
		if f.inner != nil {
			var rest []field
			if w, rest, err = takeValue(f.inner); err == nil && len(rest) > 0 {
				err = fmt.Errorf("%s is not known here; known: value unit", quote(rest[0].key))
			}
			w.Point = t.Point
		} else {
			w, err = f.write(w)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", t.Key, err)
		}
		r.writes = append(r.writes, w)
	}
	keys := make([]string, len(targets))
	for i, t := range targets {
		keys[i] = t.Key
	}
	return unknown(fields, keys...)
}

func (r *request) read(fields []field) error {
	for _, f := range fields {
		if f.key != "point" {
			return unknown([]field{f}, "point")
		}
		var err error
		if r.only, err = f.words(); err != nil {
			return err
		}
	}
	return nil
}

// lookup finds a point and the unit id of its device.
type lookup func(point.ID) (p *point.Point, unit modbus.UnitID)

// address is how a structured command says which point it means. Whatever it
// says must be true of the point.
type address struct {
	point  string
	device string
	unit   int // -1: not given
	table  modbus.Table
	addr   uint16
	placed bool
	text   string // of the register, for messages
}

func (r *request) structured(targets []config.Target, fields []field, look lookup) error {
	if slices.ContainsFunc(fields, func(f field) bool { return strings.HasPrefix(f.key, "Reg") }) {
		return r.record(targets, fields, look)
	}
	w, rest, err := takeValue(fields)
	if err != nil {
		return err
	}
	a := address{unit: -1}
	var left []field
	for _, f := range rest {
		switch f.key {
		case "point":
			a.point, err = f.words()
		case "device":
			a.device, err = f.words()
		case "register":
			if f.null || f.inner != nil || f.text == "" {
				err = errors.New("register must be an address such as \"40001\" or \"holding 0\"")
			} else {
				err = a.place(f.text)
			}
		default:
			left = append(left, f)
		}
		if err != nil {
			return err
		}
	}
	if err := unknown(left, "point", "register", "device", "value", "unit"); err != nil {
		return err
	}
	return r.find(w, a, targets, look)
}

// place takes every spelling of an address that the configuration takes.
func (a *address) place(text string) (err error) {
	a.text, a.placed = text, true
	a.table, a.addr, err = point.ParseAddress(text)
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	return nil
}

// The members of a full record that say which register and which value; the
// others describe it and are taken as they are.
var recordKeys = []string{"RegName", "RegAddress", "RegUnitID", "RegGain", "RegOffset", "RegType", "RegByteSwap", "RegValue", "OneBased", "HasError"}

// record reads what "payload: full" publishes, S30.
func (r *request) record(targets []config.Target, fields []field, look lookup) error {
	a := address{unit: -1}
	var w Write
	var at field
	oneBased, found := true, false
	for _, f := range fields {
		var err error
		switch f.key {
		case "RegName":
			a.point, err = f.words()
		case "RegAddress":
			at = f
		case "RegUnitID":
			if n, ok := f.value.Int64(); ok && n >= 0 && n <= 255 {
				a.unit = int(n)
			} else if !f.null {
				err = errors.New("RegUnitID must be a number from 0 to 255")
			}
		case "RegValue":
			found = true
			w, err = f.write(w)
		case "OneBased":
			oneBased = f.text != "false"
		case "HasError":
			if f.text == "true" {
				err = errors.New("HasError is true, so that the value is none")
			}
		default:
			if !slices.Contains(recordKeys, f.key) {
				err = unknown([]field{f}, recordKeys...)
			}
		}
		if err != nil {
			return err
		}
	}
	if !found {
		return errors.New("RegValue is missing")
	}
	if at.text != "" {
		if err := a.recordPlace(at.text, oneBased); err != nil {
			return err
		}
	}
	return r.find(w, a, targets, look)
}

// recordPlace reads a RegAddress: six digits, of which a coil's leading zeros
// are missing where it is a number.
func (a *address) recordPlace(text string, oneBased bool) error {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return a.place(text)
	}
	if !oneBased {
		n++
	}
	return a.place(fmt.Sprintf("%06d", n))
}

// find takes the one target that a fits.
func (r *request) find(w Write, a address, targets []config.Target, look lookup) error {
	if a.point == "" && !a.placed {
		return errors.New("neither point nor register says what to write")
	}
	var fits []point.ID
	for _, t := range targets {
		p, unit := look(t.Point)
		switch {
		case p == nil:
		case a.point != "" && string(t.Point) != a.point && t.Point.Name() != a.point:
		case a.device != "" && t.Point.Device() != a.device:
		case a.unit >= 0 && (p.Table == 0 || int(unit) != a.unit):
		case a.placed && (p.Table != a.table || p.Address != a.addr):
		default:
			if string(t.Point) == a.point {
				w.Point = t.Point
				r.writes = []Write{w}
				return nil
			}
			fits = append(fits, t.Point)
		}
	}
	what := a.text
	if a.point != "" {
		what = a.point
	}
	switch len(fits) {
	case 0:
		if a.point != "" && a.placed {
			return fmt.Errorf("%s at the register %s is not one of the points that this command may write", quote(a.point), quote(a.text))
		}
		return fmt.Errorf("%s is not one of the points that this command may write", quote(what))
	case 1:
		w.Point = fits[0]
		r.writes = []Write{w}
		return nil
	}
	return fmt.Errorf("%s is %s and %s; say by point which is meant", quote(what), fits[0], fits[1])
}

// parseObject reads a JSON object of scalars, and of objects of scalars. A key
// that is given twice is an error: one of the two would be lost.
func parseObject(text string) ([]field, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	count := 0
	fields, err := parseMembers(dec, 0, &count)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows it")
	}
	return fields, nil
}

func parseMembers(dec *json.Decoder, depth int, count *int) ([]field, error) {
	fields := []field{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, err
		}
		key, ok := tok.(string)
		if !ok {
			return nil, errors.New("a key is no text")
		}
		if *count++; *count > maxFields {
			return nil, fmt.Errorf("it has more than %d members", maxFields)
		}
		if slices.ContainsFunc(fields, func(f field) bool { return f.key == key }) {
			return nil, fmt.Errorf("%s is given twice", quote(key))
		}
		f := field{key: key}
		if tok, err = dec.Token(); err != nil {
			return nil, err
		}
		switch v := tok.(type) {
		case json.Number:
			f.text, f.value = v.String(), point.ParseValue(v.String())
		case string:
			f.text, f.value = v, point.TextValue(v)
		case bool:
			f.text, f.value = strconv.FormatBool(v), point.BoolValue(v)
		case nil:
			f.null = true
		case json.Delim:
			if v != '{' || depth > 0 {
				return nil, fmt.Errorf("%s is a list or nested too deep", quote(key))
			}
			if f.inner, err = parseMembers(dec, depth+1, count); err != nil {
				return nil, err
			}
		}
		fields = append(fields, f)
	}
	_, err := dec.Token() // the closing brace
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fields, err
}

// quote shows foreign text in a message, cut where nobody would read on.
func quote(s string) string {
	const most = 60
	if len(s) <= most {
		return strconv.Quote(s)
	}
	end := most
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return strconv.Quote(s[:end]) + "…"
}
