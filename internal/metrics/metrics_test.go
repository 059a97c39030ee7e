package metrics

import (
	"math"
	"testing"
)

func TestWriter(t *testing.T) {
	var w Writer
	w.Family("a_total", Counter, "Things that\nhappened, with a \\.")
	w.Sample(12345678901234)
	w.Family("empty", Gauge, "Not there.")
	w.Family("b", Gauge, "With labels.")
	w.Sample(0.25, Label{"bus", "a"}, Label{"device", "x \"1\"\\\n"})
	w.Sample(math.NaN(), Label{"bus", "b"})
	w.Sample(math.Inf(-1), Label{"bus", "c"})
	w.Family("c", Gauge, "Yes or no.")
	w.Bool(true)
	want := `# HELP a_total Things that\nhappened, with a \\.
# TYPE a_total counter
a_total 1.2345678901234e+13
# HELP b With labels.
# TYPE b gauge
b{bus="a",device="x \"1\"\\\n"} 0.25
b{bus="b"} NaN
b{bus="c"} -Inf
# HELP c Yes or no.
# TYPE c gauge
c 1
`
	if got := string(w.Bytes()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
