package watch

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/kernel/kerneltest"
)

// BenchmarkRepair takes an object of each kind away again and again, and times how long it is
// until it is back, from before the start of the program that removes it. p50-ms and p99-ms are
// what docs/kernel.md says:
//
//	go test -run '^$' -bench Repair -benchtime 200x ./pkg/datapath/watch
func BenchmarkRepair(b *testing.B) {
	n := newNode(b, 8, func(w *Watcher) {
		deafToTheClock(w)
		fearless(w)
	})
	for _, kind := range kernel.Kinds {
		b.Run(string(kind), func(b *testing.B) {
			n.t = b
			n.quiet()
			var times []time.Duration
			objects := slices.DeleteFunc(n.objects(), func(o kerneltest.Object) bool { return o.Kind != kind || o.Silent })
			for i := 0; b.Loop(); i++ {
				o := objects[i%len(objects)]
				if kind == kernel.Nexthop { // they come back with other IDs
					o = current(n, o)
				}
				before := n.synced.Load()
				at := n.remove(o)
				n.eventually(o.Remove+" is repaired", func() bool { return n.synced.Load() != before })
				times = append(times, time.Unix(0, n.synced.Load()).Sub(at))
				b.StopTimer()
				time.Sleep(200 * time.Millisecond) // faults come one by one, not without end
				b.StartTimer()
			}
			slices.Sort(times)
			b.ReportMetric(ms(times[len(times)/2]), "p50-ms")
			b.ReportMetric(ms(times[len(times)*99/100]), "p99-ms")
		})
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// bytesRead is what this process has read from files and sockets.
func bytesRead(b *testing.B) (n int64) {
	io, err := os.ReadFile("/proc/self/io")
	if _, scanErr := fmt.Sscanf(string(io), "rchar: %d", &n); err != nil || scanErr != nil {
		b.Fatal(err, scanErr)
	}
	return n
}

// BenchmarkLook is the cost of a look in which nothing is found: at 250 pods, alone and beside
// 100,000 routes of another program's.
//
//	go test -run '^$' -bench Look -benchtime 100x ./pkg/datapath/watch
func BenchmarkLook(b *testing.B) {
	n := newNode(b, 250, deafToTheClock)
	n.IP("link", "add", "br0", "type", "bridge")
	n.IP("link", "set", "br0", "up")
	for _, foreign := range []string{"0", "100000"} {
		n.Exec("sh", "-ec", `for i in $(seq `+foreign+`); do
				echo "route add 100.$((i>>16&63)).$((i>>8&255)).$((i&255))/32 dev br0 proto bird"
			done | ip -batch -
			for i in $(seq `+foreign+`); do
				echo "route add 2001:db8:f:$((i>>8)):$((i&255))::/80 dev br0 proto bird"
			done | ip -6 -batch -`)
		for _, f := range n.cfg.Features {
			b.Run(f.Name()+"/foreign="+foreign, func(b *testing.B) {
				used, read := cpu(b), bytesRead(b)
				for b.Loop() {
					if repairs, err := f.Sync(b.Context()); err != nil || len(repairs) > 0 {
						b.Fatal(repairs, err)
					}
				}
				b.ReportMetric(ms(cpu(b)-used)/float64(b.N), "cpu-ms/op")
				b.ReportMetric(float64(bytesRead(b)-read)/float64(b.N)/1024, "read-KiB/op")
			})
		}
	}
}
