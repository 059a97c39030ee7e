package simulate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Shape is how a value moves with time.
type Shape uint8

// The shapes. All but Constant, Count and Clock move between Min and Max, once
// in each Period.
const (
	Constant    Shape = iota // Value, until it is written
	Linear                   // rises from Min to Max, then begins anew
	Sine                     // begins in the middle, rising
	Triangle                 // rises to Max in half the period, and falls again
	Square                   // Max for the first Duty of the period (0.5), then Min
	Impulse                  // the same with a Duty of 0.05
	Parabola                 // an arch: Min at both ends of the period, Max in its middle
	Exponential              // rises from Min to Max, ever faster
	RandomWalk               // a random step of at most Step in each Period
	Count                    // how often it was read, from Min on; after Max comes Min
	Clock                    // the time of day, for a datetime
)

var shapeNames = [...]string{
	Constant: "constant", Linear: "linear", Sine: "sine", Triangle: "triangle", Square: "square", Impulse: "impulse",
	Parabola: "parabola", Exponential: "exponential", RandomWalk: "random_walk", Count: "count", Clock: "clock",
}

// String returns the word of the plant's file.
func (s Shape) String() string {
	if int(s) < len(shapeNames) {
		return shapeNames[s]
	}
	return "shape?"
}

// ParseShape reads the word of the plant's file.
func ParseShape(s string) (Shape, error) {
	if i := slices.Index(shapeNames[:], s); i >= 0 {
		return Shape(i), nil
	}
	return 0, fmt.Errorf("%q is not a wave; known: %s", s, strings.Join(shapeNames[:], " "))
}

// Wave is the movement of one point's value. The zero value is a constant 0.
type Wave struct {
	Shape    Shape
	Min, Max float64       // engineering values; both 0: 0 to 1, of a Count 0 to 65535
	Period   time.Duration // 0: 10 s; of a RandomWalk the time between steps
	Phase    float64       // where in its period the wave begins, 0 to 1
	Duty     float64       // of Square and Impulse, 0 to 1; 0: the shape's own
	Step     float64       // of RandomWalk; 0: a twentieth of the range
}

// Defaults of a Wave.
const (
	defaultPeriod  = 10 * time.Second
	defaultDuty    = 0.5
	defaultImpulse = 0.05
)

// Validate returns what makes no sense.
func (w Wave) Validate() error {
	switch {
	case int(w.Shape) >= len(shapeNames):
		return fmt.Errorf("shape %d is not known", w.Shape)
	case math.IsNaN(w.Min) || math.IsInf(w.Min, 0) || math.IsNaN(w.Max) || math.IsInf(w.Max, 0):
		return fmt.Errorf("min %v and max %v must be finite", w.Min, w.Max)
	case w.Min > w.Max:
		return fmt.Errorf("min %v is above max %v", w.Min, w.Max)
	case w.Period < 0:
		return fmt.Errorf("period %v is negative", w.Period)
	case !(w.Phase >= 0 && w.Phase <= 1):
		return fmt.Errorf("phase %v is outside 0-1", w.Phase)
	case !(w.Duty >= 0 && w.Duty <= 1):
		return fmt.Errorf("duty %v is outside 0-1", w.Duty)
	case !(w.Step >= 0 && w.Step <= math.MaxFloat64):
		return fmt.Errorf("step %v is negative or not finite", w.Step)
	}
	return nil
}

// moves reports whether the value changes by itself.
func (w Wave) moves() bool { return w.Shape != Constant }

// limits returns Min and Max, or what stands for both 0.
func (w Wave) limits() (low, high float64) {
	switch {
	case w.Min != 0 || w.Max != 0:
		return w.Min, w.Max
	case w.Shape == Count:
		return 0, math.MaxUint16
	}
	return 0, 1
}

func (w Wave) period() time.Duration {
	if w.Period == 0 {
		return defaultPeriod
	}
	return w.Period
}

func (w Wave) duty() float64 {
	switch {
	case w.Duty > 0:
		return w.Duty
	case w.Shape == Impulse:
		return defaultImpulse
	}
	return defaultDuty
}

// At returns the value at a time since the start. It is a function of that time
// alone for every shape but RandomWalk and Count, which it does not know.
func (w Wave) At(since time.Duration) float64 {
	low, high := w.limits()
	return low + (high-low)*w.unit(w.phase(since))
}

// phase returns where in its period the wave is, from 0 up to but not 1.
func (w Wave) phase(since time.Duration) float64 {
	period := w.period()
	into := since % period // before adding the phase: floats forget the small part of long times
	if into < 0 {
		into += period
	}
	_, p := math.Modf(float64(into)/float64(period) + w.Phase)
	return p
}

// unit returns the wave between 0 and 1 at phase p.
func (w Wave) unit(p float64) float64 {
	switch w.Shape {
	case Linear:
		return p
	case Sine:
		return (1 + math.Sin(2*math.Pi*p)) / 2
	case Triangle:
		return 1 - math.Abs(2*p-1)
	case Square, Impulse:
		if p < w.duty() {
			return 1
		}
		return 0
	case Parabola:
		return 4 * p * (1 - p)
	case Exponential:
		const steepness = 5
		return math.Expm1(steepness*p) / math.Expm1(steepness)
	}
	return 0
}

// walker is the state of a RandomWalk or Count.
type walker struct {
	random *rand.Rand
	value  float64
	steps  int64 // taken so far
}

// maxCatchUp is the number of steps that a walk nobody looked at takes at most.
const maxCatchUp = 1000

// walk returns the value of a RandomWalk at a time since the start. Times must
// not go back.
func (k *walker) walk(w Wave, since time.Duration) float64 {
	low, high := w.limits()
	if k.steps == 0 {
		k.value, k.steps = low+(high-low)*w.Phase, 1
		if w.Phase == 0 {
			k.value = (low + high) / 2
		}
	}
	step := w.Step
	if step == 0 {
		step = (high - low) / 20
	}
	due := 1 + int64(since/w.period())
	if due-k.steps > maxCatchUp {
		k.steps = due - maxCatchUp
	}
	for ; k.steps < due; k.steps++ {
		k.value = min(max(k.value+step*(2*k.random.Float64()-1), low), high)
	}
	return k.value
}

// count returns the next number of a Count.
func (k *walker) count(w Wave) float64 {
	low, high := w.limits()
	if k.steps == 0 || k.value+1 > high {
		k.value = low
	} else {
		k.value++
	}
	k.steps = 1
	return k.value
}
