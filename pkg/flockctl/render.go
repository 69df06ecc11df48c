package flockctl

import (
	"bytes"
	"context"
	gojson "encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/bird"
)

var renderCommand = command{
	name: "render", args: "(NODE | -f FILE | NODE -f FILE)",
	short: "Print the configuration of BIRD that a NodeConfig gives",
	long: `With a node: that of its NodeConfig and the AddressPools in the cluster. With a file:
that of the NodeConfig and the AddressPools in it, and no API server is asked. With
both: what the node would get if the file were applied, NodeConfigTemplates in it
included. Either it is valid, or what is wrong with it is said.

Two things differ from /run/flock/bird/bird.conf on the node. Passwords are never
shown: (secret) stands for each. And the subnets of the node's links are known to the
node alone; they are refused from routers and, with the node's addresses, decide
where a session comes from: give them by --on-link (and --address, with a file
alone) to have them in.`,
	examples: `flockctl render node1
flockctl render -f node1.yaml
kubectl get nodeconfig node1 -o yaml | sed s/64512/64513/ | flockctl render -f -
diff <(flockctl render node1) <(flockctl render node1 -f rack-a.yaml)
flockctl render node1 --on-link 2001:db8:0:1::/64,192.0.2.0/24`,
	flags: []string{"filename", "on-link", "address"}, max: 1,
	run: runRender,
}

// secretPlaceholder stands for every password.
const secretPlaceholder = "(secret)"

func runRender(ctx context.Context, s *session, args []string) error {
	switch {
	case len(args) == 0 && s.filename == "":
		return usageError("want a NODE, or -f FILE, or both")
	case len(args) == 1 && len(s.addresses) > 0:
		return usageError("--address is for -f FILE alone: those of a NODE are known")
	}
	var file, o objects
	var err error
	if s.filename != "" {
		if file, err = s.readObjects(); err != nil {
			return err
		}
		o = file
	}
	if len(args) == 1 {
		if o, err = s.objectsOf(ctx, args[0], file); err != nil {
			return err
		}
	} else if o.node, err = file.onlyNode(s.filename); err != nil {
		return err
	}
	var onLink []netip.Prefix
	for _, text := range s.onLink {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return usageError(fmt.Sprintf("--on-link %q: want prefixes, as in 2001:db8:0:1::/64,192.0.2.0/24", text))
		}
		onLink = append(onLink, p.Masked())
	}
	for _, text := range s.addresses {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return usageError(fmt.Sprintf("--address %q: want addresses, as in 2001:db8:0:1::11,192.0.2.11", text))
		}
		o.addresses = append(o.addresses, a)
	}
	conf, err := o.render(onLink)
	if err != nil {
		return err
	}
	_, err = s.out.Write(conf)
	return err
}

// objects are what a configuration of BIRD is made of.
type objects struct {
	node *v1alpha1.NodeConfig // that is rendered
	// addresses of the node.
	addresses []netip.Addr
	pools     []v1alpha1.AddressPool
	// nodes and templates, from a file.
	nodes     []v1alpha1.NodeConfig
	templates []v1alpha1.NodeConfigTemplate
}

func (o objects) onlyNode(file string) (*v1alpha1.NodeConfig, error) {
	switch len(o.nodes) {
	case 0:
		return nil, fmt.Errorf("%s holds no NodeConfig (apiVersion %s): give the name of a node beside the file", file, v1alpha1.GroupVersion)
	case 1:
		return &o.nodes[0], nil
	}
	return nil, fmt.Errorf("%s holds %d NodeConfigs: give the name of a node beside the file", file, len(o.nodes))
}

// render is pure.
func (o objects) render(onLink []netip.Prefix) ([]byte, error) {
	node, err := config.ParseNode(o.node)
	var pools []config.Pool
	for i := range o.pools {
		pool, poolErr := config.ParsePool(&o.pools[i])
		err = errors.Join(err, poolErr)
		pools = append(pools, pool)
	}
	if err != nil {
		return nil, err
	}
	in := routing.IntentOf(node)
	in.OnLink = onLink
	slices.SortFunc(in.OnLink, netip.Prefix.Compare)
	in.Addresses = o.addresses
	in.Pools = routing.PoolsOf(pools)
	in.Passwords = map[config.SecretRef]routing.Password{}
	for _, ref := range in.Secrets() {
		if in.Passwords[ref], err = routing.ParsePassword([]byte(secretPlaceholder)); err != nil {
			return nil, err
		}
	}
	return bird.Render(in), nil
}

// objectsOf are those of a node: what is in the cluster, and over it what is in file.
func (s *session) objectsOf(ctx context.Context, name string, file objects) (objects, error) {
	c, err := s.connect()
	if err != nil {
		return objects{}, err
	}
	var o objects
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := c.get(ctx, c.core, "nodes", "", name, node); err != nil && !errors.Is(err, errNotFound) {
		return objects{}, err
	}
	for _, a := range node.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			o.addresses = append(o.addresses, addr)
		}
	}
	pools, err := c.pools(ctx)
	if err != nil {
		return objects{}, err
	}
	o.pools = over(slices.DeleteFunc(pools, s.passedOver), file.pools)

	if i := slices.IndexFunc(file.nodes, func(nc v1alpha1.NodeConfig) bool { return nc.Name == name }); i >= 0 {
		o.node = &file.nodes[i]
		return o, nil
	}
	if len(file.nodes) > 0 {
		fmt.Fprintf(s.remarks, "%s holds other nodes' NodeConfigs, and none of %s: that of the cluster counts\n", s.filename, name)
	}
	if o.node, err = c.nodeConfig(ctx, name); len(file.templates) == 0 || err != nil && !errors.Is(err, errNotFound) {
		return o, err
	}
	inCluster, err := c.templates(ctx)
	if err != nil {
		return objects{}, err
	}
	var templates []*v1alpha1.NodeConfigTemplate
	for _, t := range over(inCluster, file.templates) {
		templates = append(templates, &t)
	}
	verdict := fleet.Decide(fleet.NodeOf(node), o.node, templates)
	switch {
	case verdict.Object != nil:
		o.node = verdict.Object
	case o.node == nil:
		return objects{}, errors.New(verdict.Message)
	case verdict.Reason == fleet.ByHand:
		fmt.Fprintf(s.remarks, "NodeConfig %s is written by hand: templates do not change it\n", name)
	case verdict.Reason != fleet.FromTemplate:
		fmt.Fprintf(s.remarks, "%s; what is in force stays\n", verdict.Message)
	}
	return o, nil
}

// passedOver reports, also to the operator, that the agents ignore a pool.
func (s *session) passedOver(ap v1alpha1.AddressPool) bool {
	_, err := config.ParsePool(&ap)
	if err != nil {
		fmt.Fprintf(s.remarks, "ignored, as by the agents: %v\n", err)
	}
	return err != nil
}

// over puts those of file over what is there, by name.
func over[T any, P interface {
	*T
	metav1.Object
}](there, file []T) []T {
	named := map[string]T{}
	for _, list := range [][]T{there, file} {
		for i := range list {
			named[P(&list[i]).GetName()] = list[i]
		}
	}
	var out []T
	for _, name := range slices.Sorted(maps.Keys(named)) {
		out = append(out, named[name])
	}
	return out
}

func (s *session) readObjects() (objects, error) {
	var content []byte
	var err error
	name := s.filename
	if name == "-" {
		name = "standard input"
		content, err = io.ReadAll(s.in)
	} else {
		content, err = os.ReadFile(name)
	}
	if err != nil {
		return objects{}, err
	}
	o, err := parseObjects(name, content)
	if err == nil && len(o.nodes)+len(o.pools)+len(o.templates) == 0 {
		err = fmt.Errorf("%s holds no NodeConfig, AddressPool or NodeConfigTemplate (apiVersion %s)", name, v1alpha1.GroupVersion)
	}
	return o, err
}

// parseObjects reads YAML or JSON documents, lists of objects among them, as kubectl and
// flockctl print them. What is none of flock's is passed over.
func parseObjects(name string, content []byte) (objects, error) {
	var o objects
	for i, doc := range documents(content) {
		if err := o.add(doc, metav1.TypeMeta{}); err != nil {
			return objects{}, fmt.Errorf("%s, document %d: %w", name, i+1, err)
		}
	}
	return o, nil
}

// add adds the objects of a document, which is of that kind unless it says so itself.
func (o *objects) add(doc []byte, kind metav1.TypeMeta) error {
	if err := yaml.Unmarshal(doc, &kind); err != nil {
		return fmt.Errorf("not YAML: %w", err)
	}
	var into any
	switch kind.Kind {
	case "NodeConfig":
		into = grown(&o.nodes)
	case "AddressPool":
		into = grown(&o.pools)
	case "NodeConfigTemplate":
		into = grown(&o.templates)
	default:
		of, ok := strings.CutSuffix(kind.Kind, "List")
		if !ok {
			return nil
		}
		return o.addItems(doc, metav1.TypeMeta{APIVersion: kind.APIVersion, Kind: of})
	}
	if want := v1alpha1.GroupVersion.String(); kind.APIVersion != want {
		return fmt.Errorf("apiVersion %q: want %s", kind.APIVersion, want)
	}
	return unmarshalStrict(doc, into)
}

// addItems adds those of a list. In one of a single kind the items need not name it.
func (o *objects) addItems(list []byte, kind metav1.TypeMeta) error {
	b, err := yaml.YAMLToJSONStrict(list)
	if err != nil {
		return err
	}
	var of struct {
		Items []gojson.RawMessage `json:"items"`
	}
	if err := gojson.Unmarshal(b, &of); err != nil {
		return err
	}
	for i, item := range of.Items {
		if err := o.add(item, kind); err != nil {
			return fmt.Errorf("items[%d]: %w", i, err)
		}
	}
	return nil
}

// grown adds an element and returns it.
func grown[T any](list *[]T) *T {
	*list = append(*list, *new(T))
	return &(*list)[len(*list)-1]
}

// unmarshalStrict refuses what the API server would: fields that are unknown, also by
// upper or lower case alone, or there twice.
func unmarshalStrict(doc []byte, into any) error {
	b, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return err
	}
	wrong, err := json.UnmarshalStrict(b, into)
	return errors.Join(append(wrong, err)...)
}

// documents are the parts of a YAML stream that hold something.
func documents(content []byte) (docs [][]byte) {
	for _, doc := range strings.Split("\n"+strings.ReplaceAll(string(content), "\r\n", "\n"), "\n---") {
		if len(bytes.TrimSpace([]byte(doc))) > 0 {
			docs = append(docs, []byte(doc))
		}
	}
	return docs
}
