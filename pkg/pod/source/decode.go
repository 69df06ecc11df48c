package source

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/pod"
)

// mirrorAnnotation is on the API server's copy of a static pod; its value is
// the UID that the kubelet and the runtime know the pod by.
const mirrorAnnotation = "kubernetes.io/config.mirror"

// initializing begins the message of a Ready condition that a kubelet makes up
// for a pod it has not looked at since it started.
const initializing = "Kubelet is initializing"

// decode reads a corev1.Pod in the protobuf encoding of the Kubernetes API.
func decode(b []byte) (*Pod, error) {
	var in corev1.Pod
	if err := in.Unmarshal(b); err != nil {
		return nil, fmt.Errorf("not a v1.Pod: %w", err)
	}
	if in.UID == "" || in.Name == "" || in.Namespace == "" {
		return nil, errors.New("not a v1.Pod: it lacks UID, name or namespace")
	}
	return convert(&in), nil
}

// convert takes from a corev1.Pod what a Pod holds; the rest, most of it, can
// be collected.
func convert(in *corev1.Pod) *Pod {
	p := &Pod{
		Ref:         pod.Ref{Namespace: in.Namespace, Name: in.Name, UID: cmp.Or(pod.UID(in.Annotations[mirrorAnnotation]), in.UID)},
		Version:     pod.Version(in.ResourceVersion),
		Annotations: in.Annotations,
		Labels:      in.Labels,
		HostNetwork: in.Spec.HostNetwork,
		Status:      PodStatus{Phase: Phase(in.Status.Phase), Ready: readyCondition(in.Status.Conditions)},
	}
	delete(p.Annotations, corev1.LastAppliedConfigAnnotation) // the whole object once more
	if in.DeletionTimestamp != nil {
		p.Deletion = instant(*in.DeletionTimestamp)
	}
	for _, o := range in.OwnerReferences {
		p.Owners = append(p.Owners, Owner{
			APIVersion: o.APIVersion, Kind: o.Kind, Name: o.Name, UID: o.UID,
			Controller: o.Controller != nil && *o.Controller,
		})
	}
	for _, c := range in.Spec.InitContainers {
		p.Containers = append(p.Containers, Container{Name: c.Name, Image: c.Image, Init: true})
		if sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways; sidecar {
			p.Ports = append(p.Ports, namedPorts(c.Ports)...)
		} else {
			p.InitPorts = append(p.InitPorts, namedPorts(c.Ports)...)
		}
	}
	for _, c := range in.Spec.Containers {
		p.Containers = append(p.Containers, Container{Name: c.Name, Image: c.Image})
		p.Ports = append(p.Ports, namedPorts(c.Ports)...)
	}
	for _, ip := range in.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			p.Status.IPs = append(p.Status.IPs, addr)
		}
	}
	for _, s := range in.Status.InitContainerStatuses {
		p.Status.Runs = append(p.Status.Runs, run(s, true))
	}
	for _, s := range in.Status.ContainerStatuses {
		p.Status.Runs = append(p.Status.Runs, run(s, false))
	}
	return p
}

func namedPorts(ports []corev1.ContainerPort) (named []NamedPort) {
	for _, port := range ports {
		if port.Name != "" {
			named = append(named, NamedPort{port.Name, cmp.Or(port.Protocol, corev1.ProtocolTCP), uint16(port.ContainerPort)})
		}
	}
	return named
}

// readyCondition reads the Ready condition. A pod that has none yet is new, and
// not Ready.
func readyCondition(conditions []corev1.PodCondition) Condition {
	for _, c := range conditions {
		if c.Type != corev1.PodReady {
			continue
		}
		out := Condition{Reason: c.Reason, Message: c.Message, Since: instant(c.LastTransitionTime)}
		switch {
		case c.Status == corev1.ConditionTrue:
			out.Readiness = pod.Ready
		case c.Status == corev1.ConditionFalse && !strings.HasPrefix(c.Message, initializing):
			out.Readiness = pod.NotReady
		}
		return out
	}
	return Condition{Readiness: pod.NotReady}
}

func run(s corev1.ContainerStatus, init bool) Run {
	id := s.ContainerID
	if _, after, found := strings.Cut(id, "://"); found {
		id = after
	}
	return Run{Container: s.Name, Init: init, ID: id, Restarts: s.RestartCount, Running: s.State.Running != nil}
}

// instant is t such that equal instants are equal values, whichever encoding
// they came in.
func instant(t metav1.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return time.Unix(t.Unix(), 0).UTC()
}
