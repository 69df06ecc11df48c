package flockctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/internal/version"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/kube"
)

const (
	// patience is for one answer, unless --request-timeout says otherwise.
	patience = 15 * time.Second
	// Where deploy/ puts flock's agents.
	flockNamespace = "flock-system"
	flockPods      = "app.kubernetes.io/name=flock"
	// agentLabel is on the nodes that run an agent.
	agentLabel = "flock.fritzlab.net/agent"
)

// cluster is an API server that is read.
type cluster struct {
	flock, core rest.Interface
	host        string
	namespace   string // of what is named without
	config      *rest.Config
}

func newCluster(config *rest.Config, namespace string) (*cluster, error) {
	config = rest.CopyConfig(config)
	config.UserAgent = "flockctl/" + version.Version
	if config.Timeout == 0 {
		config.Timeout = patience
	}
	api, err := kube.NewClient(config)
	if err != nil {
		return nil, err
	}
	return &cluster{flock: api.Flock(), core: api.Core(), host: config.Host, namespace: namespace, config: config}, nil
}

// errNotFound is in the chain where the object is not there, and all else is well.
var errNotFound = errors.New("not found")

// notFound says so in other words.
type notFound string

func (e notFound) Error() string        { return string(e) }
func (e notFound) Is(target error) bool { return target == errNotFound }

// get reads one object.
func (c *cluster) get(ctx context.Context, from rest.Interface, resource, namespace, name string, into runtime.Object) error {
	err := from.Get().NamespaceIfScoped(namespace, namespace != "").Resource(resource).Name(name).Do(ctx).Into(into)
	var status apierrors.APIStatus
	if errors.As(err, &status) && apierrors.IsNotFound(err) && status.Status().Details != nil && status.Status().Details.Name == name {
		return errNotFound
	}
	return c.explain(err, "get", resource)
}

// absent is the error about an object that is not there: what and resources are its kind in
// words and for kubectl. If its namespace is not there either, the error is about that.
func (c *cluster) absent(ctx context.Context, what, resources, namespace, name string) error {
	if err := c.get(ctx, c.core, "namespaces", "", namespace, &corev1.Namespace{}); errors.Is(err, errNotFound) {
		return notFound(fmt.Sprintf("there is no namespace %s: kubectl get namespaces shows those that there are", namespace))
	}
	return notFound(fmt.Sprintf("there is %s %s/%s: kubectl -n %s get %s shows those that there are", what, namespace, name, namespace, resources))
}

// list reads all objects that the selectors (each may be empty) choose.
func (c *cluster) list(ctx context.Context, from rest.Interface, resource, namespace, labels, fields string, into runtime.Object) error {
	r := from.Get().NamespaceIfScoped(namespace, namespace != "").Resource(resource)
	if labels != "" {
		r = r.Param("labelSelector", labels)
	}
	if fields != "" {
		r = r.Param("fieldSelector", fields)
	}
	return c.explain(r.Do(ctx).Into(into), "list", resource)
}

// errNoResource: the API server does not serve the resource.
var errNoResource = errors.New("not served")

// listJSON reads objects of a group that the cluster has no client for; path is that of
// the group's version.
func (c *cluster) listJSON(ctx context.Context, path, resource, namespace, labels string, into any) error {
	segments := []string{path}
	if namespace != "" {
		segments = append(segments, "namespaces", namespace)
	}
	r := c.core.Get().AbsPath(append(segments, resource)...).SetHeader("Accept", runtime.ContentTypeJSON)
	if labels != "" {
		r = r.Param("labelSelector", labels)
	}
	b, err := r.Do(ctx).Raw()
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("the API server %s does not have %s: %w", c.host, resource, errNoResource)
	case err != nil:
		return c.explain(err, "list", resource)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("cannot read the answer of API server %s about %s: %w", c.host, resource, err)
	}
	return nil
}

// explain adds to an error what to do about it.
func (c *cluster) explain(err error, verb, resource string) error {
	var status apierrors.APIStatus
	var noAnswer *url.Error
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		return fmt.Errorf("the API server %s does not have %s: flock is not installed in this cluster (kubectl apply -k deploy), or --context names another cluster", c.host, resource)
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return fmt.Errorf("%w: flockctl needs to %s %s; docs/flockctl.md has a ClusterRole to ask your cluster's administrator for", err, verb, resource)
	case errors.As(err, &status):
		return fmt.Errorf("API server %s: %w", c.host, err)
	case errors.As(err, &noAnswer), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return fmt.Errorf("the API server %s does not answer: %w: check --context and the network path; without it, ask a node itself: birdc -s /run/flock/bird/bird.ctl show protocols all", c.host, err)
	}
	return fmt.Errorf("cannot read the answer of API server %s about %s: %w: is this flockctl as new as the cluster's flock?", c.host, resource, err)
}

func (c *cluster) nodeConfigs(ctx context.Context) ([]v1alpha1.NodeConfig, error) {
	list := &v1alpha1.NodeConfigList{}
	if err := c.list(ctx, c.flock, "nodeconfigs", "", "", "", list); err != nil {
		return nil, err
	}
	slices.SortFunc(list.Items, func(a, b v1alpha1.NodeConfig) int { return strings.Compare(a.Name, b.Name) })
	for i := range list.Items {
		list.Items[i].ManagedFields = nil
	}
	return list.Items, nil
}

// nodeConfig says which there are if there is none called name.
func (c *cluster) nodeConfig(ctx context.Context, name string) (*v1alpha1.NodeConfig, error) {
	nc := &v1alpha1.NodeConfig{}
	err := c.get(ctx, c.flock, "nodeconfigs", "", name, nc)
	if errors.Is(err, errNotFound) {
		all, err := c.nodeConfigs(ctx)
		if err != nil {
			return nil, err
		}
		var names []string
		for _, other := range all[:min(len(all), 10)] {
			names = append(names, other.Name)
		}
		return nil, notFound(fmt.Sprintf("there is no NodeConfig %s: create one (docs/deploy.md), or choose from the %d that there are: %s", name, len(all), strings.Join(names, ", ")))
	}
	if err != nil {
		return nil, err
	}
	nc.ManagedFields = nil
	return nc, nil
}

func (c *cluster) pools(ctx context.Context) ([]v1alpha1.AddressPool, error) {
	list := &v1alpha1.AddressPoolList{}
	err := c.list(ctx, c.flock, "addresspools", "", "", "", list)
	return list.Items, err
}

func (c *cluster) templates(ctx context.Context) ([]v1alpha1.NodeConfigTemplate, error) {
	list := &v1alpha1.NodeConfigTemplateList{}
	err := c.list(ctx, c.flock, "nodeconfigtemplates", "", "", "", list)
	return list.Items, err
}

// agents are flock's pods by node. One that is to be replaced counts least.
func (c *cluster) agents(ctx context.Context, node string) (map[string]*corev1.Pod, error) {
	fields := ""
	if node != "" {
		fields = "spec.nodeName=" + node
	}
	list := &corev1.PodList{}
	if err := c.list(ctx, c.core, "pods", flockNamespace, flockPods, fields, list); err != nil {
		return nil, err
	}
	of := map[string]*corev1.Pod{}
	for i := range list.Items {
		p := &list.Items[i]
		if before, ok := of[p.Spec.NodeName]; !ok || before.DeletionTimestamp != nil {
			of[p.Spec.NodeName] = p
		}
	}
	return of, nil
}

// remarkSilent says of which nodes what is shown may be old, because their agents do not work.
func (c *cluster) remarkSilent(ctx context.Context, remarks io.Writer, configs []v1alpha1.NodeConfig) {
	agents, err := c.agents(ctx, "")
	for i := range configs {
		n := node{name: configs[i].Name, config: &configs[i], agent: agents[configs[i].Name], agentsUnknown: err != nil}
		switch state := n.agentState(); state {
		case "Ready", "?":
		case "none":
			fmt.Fprintf(remarks, "%s: no agent runs there, so what is said of it may be old\n", n.name)
		default:
			fmt.Fprintf(remarks, "%s: its agent is %s, so what is said of it may be old\n", n.name, state)
		}
	}
}

// labelled are the names of the nodes that are to run an agent.
func (c *cluster) labelled(ctx context.Context) ([]string, error) {
	list := &corev1.NodeList{}
	if err := c.list(ctx, c.core, "nodes", "", agentLabel, "", list); err != nil {
		return nil, err
	}
	var names []string
	for _, n := range list.Items {
		names = append(names, n.Name)
	}
	return names, nil
}

// nodeObjects are all Nodes.
func (c *cluster) nodeObjects(ctx context.Context) ([]corev1.Node, error) {
	list := &corev1.NodeList{}
	err := c.list(ctx, c.core, "nodes", "", "", "", list)
	return list.Items, err
}

// nodeAddresses are the InternalIPs of all nodes.
func (c *cluster) nodeAddresses(ctx context.Context) (map[string][]netip.Addr, error) {
	all, err := c.nodeObjects(ctx)
	return nodeAddressesOf(all), err
}

func nodeAddressesOf(nodes []corev1.Node) map[string][]netip.Addr {
	of := map[string][]netip.Addr{}
	for i := range nodes {
		of[nodes[i].Name] = fleet.NodeOf(&nodes[i]).InternalIPs
	}
	return of
}

// version is that of the API server.
func (c *cluster) version(ctx context.Context) (string, error) {
	body, err := c.core.Get().AbsPath("/version").Do(ctx).Raw()
	if err != nil {
		return "", c.explain(err, "get", "/version")
	}
	var v struct{ GitVersion string }
	if err := json.Unmarshal(body, &v); err != nil {
		return "", fmt.Errorf("cannot read the version of API server %s: %w", c.host, err)
	}
	return v.GitVersion, nil
}

// events are those that involve a pod.
func (c *cluster) events(ctx context.Context, namespace, pod string) ([]corev1.Event, error) {
	list := &corev1.EventList{}
	err := c.list(ctx, c.core, "events", namespace, "", "involvedObject.kind=Pod,involvedObject.name="+pod, list)
	return list.Items, err
}
