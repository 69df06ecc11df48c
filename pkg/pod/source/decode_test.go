package source

import (
	"net/netip"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/pod"
)

func TestDecode(t *testing.T) {
	yes, deletion := true, metav1.NewTime(at(30))
	always := corev1.ContainerRestartPolicyAlways
	in := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web-0", UID: "uid-1",
			Annotations:       map[string]string{"flock.fritzlab.net/ipv4": "true", corev1.LastAppliedConfigAnnotation: "{}"},
			Labels:            map[string]string{"app": "web"},
			DeletionTimestamp: &deletion,
			OwnerReferences: []metav1.OwnerReference{
				{APIVersion: "v1", Kind: "Node", Name: "node1", UID: "uid-n"},
				{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "web", UID: "uid-s", Controller: &yes},
			},
		},
		Spec: corev1.PodSpec{
			HostNetwork: true,
			InitContainers: []corev1.Container{
				{Name: "fetch", Image: "fetch:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8}}},
				{Name: "proxy", Image: "proxy:1", RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "admin", ContainerPort: 9}}},
			},
			Containers: []corev1.Container{{Name: "web", Image: "web:2", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}, {ContainerPort: 81}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}}}, {Name: "log", Image: "log:3"}},
		},
		Status: corev1.PodStatus{
			Phase:  corev1.PodRunning,
			PodIPs: []corev1.PodIP{{IP: "2001:db8:0:1::11"}, {IP: "192.0.2.11"}},
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodInitialized, Status: corev1.ConditionTrue},
				{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(at(7))},
			},
			InitContainerStatuses: []corev1.ContainerStatus{{Name: "fetch", ContainerID: "containerd://f0"}},
			ContainerStatuses: []corev1.ContainerStatus{
				{Name: "web", ContainerID: "cri-o://w1", RestartCount: 1, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
				{Name: "log"},
			},
		},
	}
	want := &Pod{
		Ref:         pod.Ref{Namespace: "shop", Name: "web-0", UID: "uid-1"},
		Annotations: map[string]string{"flock.fritzlab.net/ipv4": "true"},
		Labels:      map[string]string{"app": "web"},
		Owners: []Owner{
			{APIVersion: "v1", Kind: "Node", Name: "node1", UID: "uid-n"},
			{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "web", UID: "uid-s", Controller: true},
		},
		Containers:  []Container{{"fetch", "fetch:1", true}, {"proxy", "proxy:1", true}, {"web", "web:2", false}, {"log", "log:3", false}},
		InitPorts:   []NamedPort{{"http", corev1.ProtocolTCP, 8}},
		Ports:       []NamedPort{{"admin", corev1.ProtocolTCP, 9}, {"http", corev1.ProtocolTCP, 80}, {"dns", corev1.ProtocolUDP, 53}},
		HostNetwork: true,
		Deletion:    at(30),
		Status: PodStatus{
			Phase: Running,
			IPs:   []netip.Addr{netip.MustParseAddr("2001:db8:0:1::11"), netip.MustParseAddr("192.0.2.11")},
			Ready: Condition{Readiness: pod.Ready, Since: at(7)},
			Runs: []Run{
				{Container: "fetch", Init: true, ID: "f0"},
				{Container: "web", ID: "w1", Restarts: 1, Running: true},
				{Container: "log"},
			},
		},
	}
	got, err := decode(encode(t, in))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded\n%+v, %v, want\n%+v", got, err, want)
	}

	in.Annotations[mirrorAnnotation] = "uid-static"
	if got := convert(in).UID; got != "uid-static" {
		t.Errorf("the mirror of a static pod has UID %s, want the kubelet's own, uid-static", got)
	}
}

func TestReadiness(t *testing.T) {
	for name, c := range map[string]struct {
		conditions []corev1.PodCondition
		want       pod.Readiness
	}{
		"new":          {nil, pod.NotReady},
		"ready":        {[]corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}, pod.Ready},
		"unready":      {[]corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: "ContainersNotReady", Message: "containers with unready status: [c]"}}, pod.NotReady},
		"initializing": {asInitializing(apiPod("a", corev1.ConditionTrue, 0)).Status.Conditions, pod.Unknown},
		"unknown":      {[]corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionUnknown}}, pod.Unknown},
	} {
		if got := readyCondition(c.conditions).Readiness; got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b, err := apiPod("a", corev1.ConditionTrue, 0).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decode(b)
		if (p == nil) == (err == nil) {
			t.Errorf("decoded %v with error %v", p, err)
		}
		if p != nil && (p.UID == "" || p.Name == "" || p.Namespace == "") {
			t.Errorf("decoded a pod without a name: %+v", p.Ref)
		}
	})
}
