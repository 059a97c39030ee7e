package simulate

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func TestWaves(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		wave Wave
		want map[time.Duration]float64 // by time since the start
	}{
		{Wave{Shape: Linear, Min: 10, Max: 20, Period: 10 * s}, map[time.Duration]float64{0: 10, s: 11, 5 * s: 15, 10 * s: 10, 19 * s: 19}},
		{Wave{Shape: Linear, Period: 10 * s}, map[time.Duration]float64{0: 0, 5 * s: 0.5}},
		{Wave{Shape: Linear}, map[time.Duration]float64{5 * s: 0.5}},
		{Wave{Shape: Linear, Min: 0, Max: 100, Period: 10 * s, Phase: 0.25}, map[time.Duration]float64{0: 25, 8 * s: 5}},
		{Wave{Shape: Sine, Min: -1, Max: 1, Period: 4 * s}, map[time.Duration]float64{0: 0, s: 1, 2 * s: 0, 3 * s: -1, 5 * s: 1}},
		{Wave{Shape: Triangle, Min: 0, Max: 2, Period: 4 * s}, map[time.Duration]float64{0: 0, s: 1, 2 * s: 2, 3 * s: 1, 4 * s: 0}},
		{Wave{Shape: Square, Min: 3, Max: 7, Period: 4 * s}, map[time.Duration]float64{0: 7, s: 7, 2 * s: 3, 3 * s: 3, 4 * s: 7}},
		{Wave{Shape: Square, Min: 3, Max: 7, Period: 4 * s, Duty: 0.25}, map[time.Duration]float64{0: 7, s: 3}},
		{Wave{Shape: Impulse, Min: 0, Max: 1, Period: 20 * s}, map[time.Duration]float64{0: 1, s - 1: 1, s: 0, 19 * s: 0, 20 * s: 1}},
		{Wave{Shape: Parabola, Min: 0, Max: 4, Period: 4 * s}, map[time.Duration]float64{0: 0, s: 3, 2 * s: 4, 3 * s: 3}},
		{Wave{Shape: Exponential, Min: 1, Max: 2, Period: 4 * s}, map[time.Duration]float64{0: 1, 2 * s: 1 + math.Expm1(2.5)/math.Expm1(5)}},
	} {
		for at, want := range c.want {
			if got := c.wave.At(at); math.Abs(got-want) > 1e-9 {
				t.Errorf("%v at %v: %v, want %v", c.wave.Shape, at, got, want)
			}
		}
	}
}

// TestWavesStayInside: whatever the settings and the time, a value lies between
// Min and Max, and the waves are the same each period, after years too.
func TestWavesStayInside(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 5000 {
		w := Wave{Shape: Linear + Shape(r.IntN(int(Exponential))), Min: r.NormFloat64() * 100, Period: time.Duration(1 + r.Int64N(1e12)), Phase: r.Float64(), Duty: r.Float64()}
		w.Max = w.Min + r.Float64()*100
		if err := w.Validate(); err != nil {
			t.Fatal(err)
		}
		at := time.Duration(r.Int64N(1e17))
		v := w.At(at)
		if !(v >= w.Min-1e-9 && v <= w.Max+1e-9) {
			t.Fatalf("%+v at %v: %v", w, at, v)
		}
		if again := w.At(at + w.Period); again != v {
			t.Fatalf("%+v at %v: %v, a period later %v", w, at, v, again)
		}
	}
}

func TestRandomWalk(t *testing.T) {
	w := Wave{Shape: RandomWalk, Min: 10, Max: 20, Period: time.Second, Step: 2}
	walk := func(seed uint64) []float64 {
		k := walker{random: rand.New(rand.NewPCG(seed, 0))}
		var values []float64
		for i := range 500 {
			values = append(values, k.walk(w, time.Duration(i)*time.Second))
		}
		return values
	}
	a, b, c := walk(1), walk(1), walk(2)
	if a[0] != 15 {
		t.Errorf("begins at %v, want the middle", a[0])
	}
	same, moved := true, 0
	for i := range a {
		if a[i] != b[i] {
			t.Fatal("one seed makes two walks")
		}
		same = same && a[i] == c[i]
		if a[i] < 10 || a[i] > 20 {
			t.Errorf("step %d leads to %v", i, a[i])
		}
		if i > 0 {
			if d := math.Abs(a[i] - a[i-1]); d > 2 {
				t.Errorf("step %d goes %v far", i, d)
			} else if d > 0 {
				moved++
			}
		}
	}
	if same || moved < 400 {
		t.Errorf("two seeds make the same walk: %v; %d of 499 steps move", same, moved)
	}
	// Between two steps it stands still, and after a long absence it is there
	// at once.
	k := walker{random: rand.New(rand.NewPCG(1, 0))}
	if a, b := k.walk(w, 1500*time.Millisecond), k.walk(w, 1900*time.Millisecond); a != b {
		t.Errorf("%v and %v within one step", a, b)
	}
	k.walk(w, 1e6*time.Second)
	if k.steps != 1+1e6 {
		t.Errorf("%d steps", k.steps)
	}
	phased := walker{random: rand.New(rand.NewPCG(1, 0))}
	w.Phase = 1
	if got := phased.walk(w, 0); got != 20 {
		t.Errorf("with phase 1 it begins at %v, want 20", got)
	}
}

func TestCount(t *testing.T) {
	var k walker
	w := Wave{Shape: Count, Min: 3, Max: 5}
	for i, want := range []float64{3, 4, 5, 3, 4} {
		if got := k.count(w); got != want {
			t.Errorf("read %d: %v, want %v", i, got, want)
		}
	}
	if low, high := (Wave{Shape: Count}).limits(); low != 0 || high != 65535 {
		t.Errorf("a count without limits goes from %v to %v", low, high)
	}
}

func TestWaveValidate(t *testing.T) {
	for _, w := range []Wave{
		{Shape: 99}, {Min: 2, Max: 1}, {Max: math.NaN()}, {Min: math.Inf(-1)}, {Period: -1}, {Phase: 1.1}, {Phase: math.NaN()},
		{Duty: -0.1}, {Step: -1}, {Step: math.Inf(1)},
	} {
		if w.Validate() == nil {
			t.Errorf("%+v is accepted", w)
		}
	}
	for i, name := range shapeNames {
		if s, err := ParseShape(name); err != nil || s != Shape(i) || s.String() != name {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	if _, err := ParseShape("sinus"); err == nil {
		t.Error("sinus is accepted")
	}
	if got := Shape(99).String(); got != "shape?" {
		t.Errorf("Shape(99) is %q", got)
	}
}
