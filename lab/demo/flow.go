package demo

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// answer is what came of one request, as the echo program prints it.
type answer struct {
	OK           bool
	Error        string
	Milliseconds float64 `json:"ms"`
	Wall         time.Time
	Body         struct{ Pod, Node string }
}

// flow is requests to one address, each over a new connection.
type flow struct {
	mu  sync.Mutex // guards all
	all []answer
}

// read takes in lines of the echo program until they end.
func (f *flow) read(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var a answer
		if json.Unmarshal(lines.Bytes(), &a) == nil && !a.Wall.IsZero() {
			f.mu.Lock()
			f.all = append(f.all, a)
			f.mu.Unlock()
		}
	}
}

func (f *flow) answers() []answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.all)
}

// figures are a flow's in one line.
type figures struct {
	answered, failed int
	median, slowest  float64 // milliseconds, of those that were answered
	// gap is the longest time without an answer, and began when it began.
	gap   time.Duration
	began time.Time
}

func figuresOf(all []answer) (f figures) {
	var times []float64
	var last time.Time
	for _, a := range all {
		if !a.OK {
			f.failed++
			continue
		}
		f.answered++
		times = append(times, a.Milliseconds)
		if gap := a.Wall.Sub(last); !last.IsZero() && gap > f.gap {
			f.gap, f.began = gap, last
		}
		last = a.Wall
	}
	if len(times) > 0 {
		slices.Sort(times)
		f.median, f.slowest = times[len(times)/2], times[len(times)-1]
	}
	return f
}

func (f figures) String() string {
	return fmt.Sprintf("%d answered, %d failed, p50 %.1f ms, slowest %.1f ms", f.answered, f.failed, f.median, f.slowest)
}

var bars = []rune(" ▁▂▃▄▅▆▇█")

// bar shows how many answers came in each of some times, the newest at the right.
func bar(all []answer, now time.Time, each time.Duration, n int, most int, match func(answer) bool) string {
	counts := make([]int, n)
	for _, a := range slices.Backward(all) {
		ago := now.Sub(a.Wall)
		i := n - 1 - int(ago/each)
		if i < 0 {
			break
		}
		if i < n && match(a) {
			counts[i]++
		}
	}
	out := make([]rune, n)
	for i, c := range counts {
		level := 0
		if c > 0 {
			level = min(1+c*(len(bars)-1)/max(most, 1), len(bars)-1)
		}
		out[i] = bars[level]
	}
	return string(out)
}
