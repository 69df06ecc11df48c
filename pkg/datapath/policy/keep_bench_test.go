package policy

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	fcache "k8s.io/client-go/tools/cache/testing"
)

// BenchmarkRestore is what a start costs with 100,000 pods in the file, and what they
// take in memory.
func BenchmarkRestore(b *testing.B) {
	file := filepath.Join(b.TempDir(), "policies")
	newEnforcer := func() *Enforcer {
		return New(Config{File: file, Sources: Sources{Pods: fcache.NewFakeControllerSource()}, Log: slog.New(slog.DiscardHandler)})
	}
	e := newEnforcer()
	e.restore()
	w := e.watches[0]
	for i := range 100_000 {
		app := i / 10 % 1000
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprint("team-", i%100), Name: fmt.Sprintf("app-%d-%010x-%05x", app, app*7919, i), UID: types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012x", i)),
			Labels: map[string]string{
				"app.kubernetes.io/name": fmt.Sprint("app-", app), "app.kubernetes.io/instance": fmt.Sprintf("team-%d-app-%d", i%100, app),
				"app.kubernetes.io/part-of": fmt.Sprint("team-", i%100), "tier": "front", "pod-template-hash": fmt.Sprintf("%010x", app*7919),
			},
		}}
		p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}}}
		p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("2001:db8::%x", i)}, {IP: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)}}
		own, err := w.owned(p)
		if err != nil {
			b.Fatal(err)
		}
		w.put(own)
	}
	w.setSynced(true)
	e.flush()
	e.journal.Close()
	e = nil
	var before, after runtime.MemStats
	for b.Loop() {
		b.StopTimer()
		e = nil
		runtime.GC()
		runtime.ReadMemStats(&before)
		e = newEnforcer()
		b.StartTimer()
		e.restore()
		b.StopTimer()
		e.journal.Close()
		if n := len(e.watches[0].objects); n != 100_000 {
			b.Fatalf("%d objects are restored", n)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.StartTimer()
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/100_000, "heapB/pod")
	runtime.KeepAlive(e)
}
