package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/kernel/kerneltest"
)

// repair measures how soon flock has restored what another program changed in the
// kernel: every kind of object that flock has there.
var repair = Bench{
	Name:  repairName,
	About: "objects of flock's in a node's kernel that are taken away, until the agent has restored them, against the command that takes them away; a fifth as often",
	Run: func(ctx context.Context, l *cluster.Lab, n int) (results []Result, err error) {
		defer func() {
			_, gone := l.Kubectl(context.WithoutCancel(ctx), "", "delete", "--ignore-not-found", "--wait=true", "namespace/"+repairName, "addresspool/"+repairName)
			err = errors.Join(err, gone)
		}()
		if _, err := l.Kubectl(ctx, repairPods, "apply", "--filename=-"); err != nil {
			return nil, err
		}
		if _, err := l.Kubectl(ctx, "", "--namespace="+repairName, "rollout", "status", "deployment/pods", "--timeout=60s"); err != nil {
			return nil, err
		}
		var m map[kernel.Kind]repairTimes
		if err := OnNode(ctx, l, repairNode, repairName, max(1, n/5), &m); err != nil {
			return nil, err
		}
		for _, kind := range kernel.Kinds {
			results = append(results, Result{
				Name: "repair." + string(kind), Unit: "ms", Figures: Milliseconds(m[kind].Repaired),
				Baseline: &Result{Name: "command." + string(kind), Unit: "ms", Figures: Milliseconds(m[kind].Command)},
			})
		}
		return results, nil
	},
	OnNode: func(ctx context.Context, input json.RawMessage) (any, error) {
		var n int
		if err := json.Unmarshal(input, &n); err != nil {
			return nil, err
		}
		return measureRepairs(ctx, n)
	},
}

const (
	repairName = "repair"
	repairNode = "node1"
	// faultsApart keeps one fault from being part of another, and faultsEach the
	// agent from taking the benchmark for a program that fights it.
	faultsApart = 100 * time.Millisecond
	faultsEach  = 7
	// agentMetrics is where the agent of a node counts repairs.
	agentMetrics = "http://127.0.0.1:9479/metrics"
)

// repairPods are four pods of both families with anycast addresses, so that
// everything is there that flock puts into a kernel.
const repairPods = `
apiVersion: v1
kind: Namespace
metadata: {name: ` + repairName + `}
---
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: ` + repairName + `}
spec:
  cidrs: ["2001:db8:55::/64", "203.0.113.128/25"]
  uses: [anycast]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ` + repairName + `}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: pods, namespace: ` + repairName + `}
spec:
  replicas: 4
  selector: {matchLabels: {app: pods}}
  template:
    metadata:
      labels: {app: pods}
      annotations: {flock.fritzlab.net/anycast: "2001:db8:55::1,203.0.113.129"}
    spec:
      nodeName: ` + repairNode + `
      terminationGracePeriodSeconds: 0
      containers: [{name: echo, image: "echo:dev", imagePullPolicy: Never}]
`

// repairTimes are durations by fault: until it was repaired, and of the command.
type repairTimes struct{ Repaired, Command []time.Duration }

func measureRepairs(ctx context.Context, n int) (map[kernel.Kind]repairTimes, error) {
	all := map[kernel.Kind]repairTimes{}
	for _, kind := range kernel.Kinds {
		var times repairTimes
		struck := map[string]int{}
		for len(times.Repaired) < n {
			objects, err := objectsOf(ctx, kind)
			if err != nil {
				return nil, err
			}
			objects = slices.DeleteFunc(objects, func(o kerneltest.Object) bool { return struck[o.Remove] >= faultsEach })
			if len(objects) == 0 {
				break
			}
			o := objects[len(times.Repaired)%len(objects)]
			struck[o.Remove]++
			if err := times.strike(ctx, o); err != nil {
				return nil, err
			}
			if err := pause(ctx, faultsApart); err != nil {
				return nil, err
			}
		}
		all[kind] = times
	}
	return all, nil
}

// objectsOf returns flock's objects of a kind for which the kernel sends notifications.
func objectsOf(ctx context.Context, kind kernel.Kind) ([]kerneltest.Object, error) {
	all, err := kerneltest.Objects(func(name string, args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, name, args...).Output()
		return string(out), err
	})
	return slices.DeleteFunc(all, func(o kerneltest.Object) bool { return o.Kind != kind || o.Silent }), err
}

// strike takes an object away and waits until the agent counts its repair.
func (t *repairTimes) strike(ctx context.Context, o kerneltest.Object) error {
	before, err := repairs(ctx, o.Kind)
	if err != nil {
		return err
	}
	began := time.Now()
	if out, err := exec.CommandContext(ctx, "sh", "-c", o.Remove).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", o.Remove, err, out)
	}
	command := time.Since(began)
	for {
		now, err := repairs(ctx, o.Kind)
		switch {
		case err != nil:
			return err
		case now > before:
			t.Repaired, t.Command = append(t.Repaired, time.Since(began)), append(t.Command, command)
			return nil
		case time.Since(began) > patience:
			return fmt.Errorf("%s: flock has not repaired it within %s", o.Remove, patience)
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

// repairs is how many objects of the kind the agent has restored.
func repairs(ctx context.Context, kind kernel.Kind) (n float64, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, agentMetrics, nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	prefix := fmt.Sprintf("flock_kernel_repairs_total{kind=%q} ", kind)
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), prefix); ok {
			n, err = strconv.ParseFloat(value, 64)
		}
	}
	return n, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
