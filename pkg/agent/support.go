//go:build linux

package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/support"
)

// conditionSupported: what flock needs of the node and of the cluster is there.
const conditionSupported = "Supported"

// supported reports what flock needs and the node or the cluster does not have. It stops
// nothing: what is missing fails where it is used, and this says why.
type supported struct {
	nodeName    string
	api         *kube.Client
	node        *kube.Cache[*corev1.Node]
	nodeChanged *cell.Topic
	daemon      cell.Reader[daemon]
	kernel      func() ([]support.Finding, error)
	log         *slog.Logger

	tried  cell.Cell[kernelTrial]
	server cell.Cell[string] // the API server's version; empty while it is not known
}

// kernelTrial is what came of trying the kernel.
type kernelTrial struct {
	done     bool
	findings []support.Finding
}

// versionEvery is how often the API server is asked for its version, which changes with
// an upgrade.
const versionEvery = 10 * time.Minute

// Run tries the kernel, until it has been tried, and logs each thing that is missing when it is
// found.
func (s *supported) Run(ctx context.Context) error {
	return together(ctx, s.followServer, s.tryKernel, func(ctx context.Context) error {
		changed := cell.Signal()
		s.Notify(changed)
		logged := map[string]bool{}
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
			for _, f := range s.findings() {
				if logged[f.String()] {
					continue
				}
				logged[f.String()] = true
				level := slog.LevelWarn
				if f.Breaks {
					level = slog.LevelError
				}
				s.log.Log(ctx, level, "the node lacks a requirement of flock", "object", f.Object, "found", f.Found, "needed", f.Needed, "without", f.Without, "remedy", f.Remedy)
			}
		}
	})
}

// tryKernel tries the kernel once. Until that succeeds nothing is said of it.
func (s *supported) tryKernel(ctx context.Context) error {
	delay := backoff.Backoff{First: time.Second, Last: time.Minute}
	for {
		findings, err := s.kernel()
		if err == nil {
			s.tried.Set(kernelTrial{true, findings})
			return nil
		}
		s.log.Warn("cannot try what the kernel has, will retry", "error", err)
		if delay.Wait(ctx) != nil {
			return nil
		}
	}
}

// followServer keeps the API server's version.
func (s *supported) followServer(ctx context.Context) error {
	delay := backoff.Backoff{First: time.Second, Last: time.Minute}
	for {
		if version, err := serverVersion(ctx, s.api); err != nil {
			s.log.Debug("cannot ask the API server for its version, will retry", "error", err)
			if delay.Wait(ctx) != nil {
				return nil
			}
			continue
		} else if version != s.server.Get() {
			s.server.Set(version)
		}
		delay.Reset()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(versionEvery):
		}
	}
}

// serverVersion asks the API server for its version.
func serverVersion(ctx context.Context, api *kube.Client) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body, err := api.Core().Get().AbsPath("/version").Do(ctx).Raw()
	if err != nil {
		return "", err
	}
	var v struct{ GitVersion string }
	err = json.Unmarshal(body, &v)
	return v.GitVersion, err
}

// findings are what is missing, what breaks flock first.
func (s *supported) findings() []support.Finding {
	all := slices.Clone(s.tried.Get().findings)
	if n, ok := s.node.Get(s.nodeName); ok {
		info := n.Status.NodeInfo
		all = append(all, support.Node(info.KernelVersion, info.ContainerRuntimeVersion, info.KubeletVersion)...)
	}
	all = append(all, support.APIServer(s.server.Get())...)
	all = append(all, support.BIRD(s.daemon.Get().BIRD.Version)...)
	slices.SortStableFunc(all, func(a, b support.Finding) int {
		switch {
		case a.Breaks == b.Breaks:
			return 0
		case a.Breaks:
			return -1
		}
		return 1
	})
	return all
}

// Notify implements Follower.
func (s *supported) Notify(ch chan<- struct{}) {
	s.tried.Notify(ch)
	s.server.Notify(ch)
	s.daemon.Notify(ch)
	s.nodeChanged.Notify(ch)
}

// Conditions implements Conditioner.
func (s *supported) Conditions() []metav1.Condition {
	c := metav1.Condition{Type: conditionSupported}
	if !s.tried.Get().done {
		return nil // not known yet: the condition stays as it is
	}
	var texts []string
	breaks := false
	for _, f := range s.findings() {
		texts = append(texts, f.String())
		breaks = breaks || f.Breaks
	}
	switch {
	case breaks:
		c.Status, c.Reason = metav1.ConditionFalse, "Missing"
	case len(texts) > 0:
		c.Status, c.Reason = metav1.ConditionTrue, "MissingSome"
	default:
		c.Status, c.Reason = metav1.ConditionTrue, "AllThere"
	}
	c.Message = strings.Join(texts, "\n")
	return []metav1.Condition{c}
}
