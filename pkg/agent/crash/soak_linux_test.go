package crash

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	soak    = flag.Int("soak", 0, "pods that TestSoak and TestSoakAPIServer attach and detach; 0: they do nothing")
	soakFor = flag.Duration("soak-for", 0, "when a soak ends though not all pods had their turn; 0: never")
	out     = flag.String("out", "", "file for the plot of a soak, SVG")
)

// sample is what the agent and the kernel use at one moment.
type sample struct {
	pods                                 int
	rss, goroutines, descriptors, slabMB float64
	birdRSS, birdSeconds                 float64 // of processor time since its start
}

func (n *node) sample(pods int) sample {
	s := sample{pods: pods}
	s.rss = rss(n.agent.Process.Pid)
	if n.bird != nil {
		s.birdRSS = rss(n.bird.Pid)
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.bird.Pid))
		if _, rest, ok := strings.Cut(string(stat), ") "); ok {
			fields := strings.Fields(rest) // from the third of proc_pid_stat(5) on
			user, _ := strconv.ParseFloat(fields[11], 64)
			system, _ := strconv.ParseFloat(fields[12], 64)
			s.birdSeconds = (user + system) / 100
		}
	}
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.agent.Process.Pid))
	s.descriptors = float64(len(fds))
	memory, _ := os.Open("/proc/meminfo")
	defer memory.Close()
	for lines := bufio.NewScanner(memory); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Slab:"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(value)[0], 64)
			s.slabMB = kb / 1024
		}
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		n.host.Run(func() { conn, err = (&net.Dialer{}).DialContext(ctx, network, addr) })
		return conn, err
	}}}
	if answer, err := client.Get("http://127.0.0.1:9479/metrics"); err == nil {
		body, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		for line := range strings.Lines(string(body)) {
			if value, ok := strings.CutPrefix(line, "go_goroutines "); ok {
				s.goroutines, _ = strconv.ParseFloat(strings.TrimSpace(value), 64)
			}
		}
	}
	return s
}

// rss is in MiB.
func rss(pid int) float64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(value)[0], 64)
			return kb / 1024
		}
	}
	return 0
}

// TestSoak attaches and detaches many pods through the plugin, and kills the agent now and then.
// Nothing is left, and nothing grows.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("no -soak")
	}
	n, s := withBystanders(t)
	soakOn(t, n, n.settled, func(*rand.Rand) {})
	s.unbroken(t)
	n.nothingHeld()
}

// soakOn attaches and detaches pods, with a change before each hundredth.
func soakOn(t *testing.T, n *node, settled func() error, change func(*rand.Rand)) {
	r := random(t)
	const namespaces = 64 // a pod's link is deleted some time after DEL, and the next one needs its name
	var sandboxes []*pod
	for range namespaces {
		sandboxes = append(sandboxes, n.sandbox("", 0))
	}
	every, kills, pods := max(1, min(250, *soak/100)), 0, 0
	nextKill := 500 + r.IntN(1000)
	var samples []sample
	began := time.Now()
	for i := range *soak {
		if *soakFor > 0 && time.Since(began) > *soakFor {
			break
		}
		if pods = i + 1; i%100 == 0 {
			change(r)
		}
		p := *sandboxes[i%namespaces]
		p.id, p.port = fmt.Sprintf("soak-%d", i), (i%5/4)*9000
		if i == nextKill {
			n.eventually("kill", func() error { // a kill of before may come at any time
				if !n.alive() {
					kills++
					n.start()
				}
				_, err := n.tryFaults(fmt.Sprint("kill ", 1+r.IntN(20)))
				return err
			})
			nextKill += 500 + r.IntN(1000)
		}
		n.must("ADD", func() error {
			if !n.alive() {
				kills++
				n.start()
			}
			return n.add(&p)
		})
		n.must("DEL", func() error {
			if !n.alive() {
				kills++
				n.start()
			}
			return n.del(&p)
		})
		if i%every == every-1 {
			if !n.alive() {
				kills++
				n.start()
			}
			samples = append(samples, n.sample(i+1))
			n.eventually("amid the soak", func() error {
				if !n.alive() {
					kills++
					n.start()
				}
				return settled()
			})
		}
	}
	if !n.alive() {
		n.start()
	}
	n.eventually("after the soak", settled)
	first, last := samples[len(samples)/5], samples[len(samples)-1]
	t.Logf("%d pods in %v, %d kills; first fifth's end: %+v, end: %+v", pods, time.Since(began).Round(time.Second), kills, first, last)
	if *out != "" {
		if err := os.WriteFile(*out, []byte(plot(samples)), 0o644); err != nil {
			t.Error(err)
		}
	}
	if last.descriptors > first.descriptors+10 || last.goroutines > first.goroutines+20 || last.rss > 1.5*first.rss+20 {
		t.Errorf("it grows: from %+v to %+v", first, last)
	}
}

// plot draws each value over the number of pods, scaled to its own maximum.
func plot(samples []sample) string {
	const width, height, top = 800, 300, 20
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12"><rect width="100%%" height="100%%" fill="white"/>`+"\n", width+40, height+150)
	last := samples[len(samples)-1]
	for i, line := range []struct {
		name, color string
		value       func(sample) float64
	}{
		{"RSS, MiB", "#1f77b4", func(s sample) float64 { return s.rss }},
		{"goroutines", "#d62728", func(s sample) float64 { return s.goroutines }},
		{"file descriptors", "#2ca02c", func(s sample) float64 { return s.descriptors }},
		{"RSS of BIRD, MiB", "#ff7f0e", func(s sample) float64 { return s.birdRSS }},
		{"processor time of BIRD, s", "#8c564b", func(s sample) float64 { return s.birdSeconds }},
		{"slab of the machine, MiB", "#9467bd", func(s sample) float64 { return s.slabMB }},
	} {
		most := 1.0
		for _, s := range samples {
			most = max(most, line.value(s))
		}
		var points []string
		for _, s := range samples {
			points = append(points, fmt.Sprintf("%.1f,%.1f", 20+float64(s.pods)/float64(last.pods)*width, top+height-line.value(s)/most*height))
		}
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" points="%s"/>`+"\n", line.color, strings.Join(points, " "))
		fmt.Fprintf(&b, `<text x="20" y="%d" fill="%s">%s: at the end %.0f, at most %.0f</text>`+"\n", top+height+20+16*i, line.color, line.name, line.value(last), most)
	}
	fmt.Fprintf(&b, `<text x="20" y="%d">0 to %d pods attached and detached; each line is scaled to its maximum</text></svg>`+"\n", top+height+20+16*6, last.pods)
	return b.String()
}
