//go:build linux

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/watch"
	"flock.fritzlab.net/flock/pkg/kube"
)

// conditionKernel: flock's state in the kernel is what it should be, and nothing else
// in the kernel is in its way.
const conditionKernel = "KernelInSync"

// repair keeps the kernel at what the features want, and reports what it repaired and
// what it cannot repair.
type repair struct {
	*watch.Watcher
	events  *kube.Recorder
	changed *cell.Topic // what cannot be repaired has changed
}

func newRepair(features []datapath.Feature, events *kube.Recorder, changed *cell.Topic, log *slog.Logger) (r *repair, err error) {
	r = &repair{events: events, changed: changed}
	r.Watcher, err = watch.Open(watch.Config{Features: features, OnRepair: r.report, OnStatus: changed.Wake, Log: log})
	return r, err
}

// report writes one Event of the Node for a burst of repairs.
func (r *repair) report(b watch.Burst) {
	who := "another program"
	if len(b.By) > 0 {
		who = strings.Join(b.By, ", ")
	}
	more := ""
	if n := len(b.Repairs) - 1; n > 0 {
		more = fmt.Sprintf(", and %d more", n)
	}
	r.events.NodeEvent(kube.Warning, "KernelRepaired", "Repair", fmt.Sprintf("%s changed what flock put into the kernel, and flock repaired it (%s): %s%s", who, b.Feature, b.Repairs[0], more))
}

// Notify implements Follower.
func (r *repair) Notify(ch chan<- struct{}) { r.changed.Notify(ch) }

// Unsettled implements Settler.
func (r *repair) Unsettled() string { return strings.Join(r.Status().Faults, "; ") }

// Conditions implements Conditioner.
func (r *repair) Conditions() []metav1.Condition {
	var err error
	if faults := r.Unsettled(); faults != "" {
		err = errors.New(faults)
	}
	return []metav1.Condition{condition(conditionKernel, err, "InSync", "OutOfSync")}
}
