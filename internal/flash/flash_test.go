package flash

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Ledger
		if r := l.Report(); r != (Report{}) {
			t.Errorf("an empty ledger says %+v", r)
		}
		want := func(total, hour, day int64) {
			t.Helper()
			r := l.Report()
			if r.Total.Bytes != total || r.Hour.Bytes != hour || r.Day.Bytes != day {
				t.Errorf("%v: %+v, want %d, %d, %d bytes", time.Now().UTC(), r, total, hour, day)
			}
			if r.Total.Bytes != 10*r.Total.Syncs || r.Hour.Bytes != 10*r.Hour.Syncs || r.Day.Bytes != 10*r.Day.Syncs {
				t.Errorf("%+v, want a sync for every ten bytes", r)
			}
		}
		l.Add(10, 1)
		want(10, 10, 10)
		time.Sleep(59 * time.Minute)
		l.Add(20, 2)
		want(30, 30, 30)
		time.Sleep(time.Minute)
		want(30, 20, 30)
		time.Sleep(59 * time.Minute)
		want(30, 0, 30)
		time.Sleep(22 * time.Hour)
		want(30, 0, 30)
		time.Sleep(time.Minute)
		want(30, 0, 20)
		time.Sleep(time.Hour)
		want(30, 0, 0)
		time.Sleep(1000 * time.Hour)
		l.Add(40, 4)
		want(70, 40, 40)
	})
}

func TestSum(t *testing.T) {
	var a, b Ledger
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				a.Add(3, 1)
				b.Add(4, 0)
			}
		})
	}
	wg.Wait()
	r := a.Report().Add(b.Report())
	if want := (Figures{28_000, 4000}); r.Total != want || r.Hour != want || r.Day != want {
		t.Errorf("%+v, want %+v three times", r, want)
	}
}
