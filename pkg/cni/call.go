package cni

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"flock.fritzlab.net/flock/pkg/cni/wire"
	"flock.fritzlab.net/flock/pkg/pod"
)

// The commands of the CNI spec that reach the agent; VERSION is the plugin's.
const (
	CommandAdd    = "ADD"
	CommandDel    = "DEL"
	CommandCheck  = "CHECK"
	CommandGC     = "GC"
	CommandStatus = "STATUS"
)

// SupportedVersions are the spec versions flock speaks, oldest first.
var SupportedVersions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// latestVersion is used to talk to a runtime that did not say what it speaks.
const latestVersion = "1.1.0"

// Call is one call of a runtime. The fields that the spec requires for its command are
// there and well formed, those of DEL apart.
type Call struct {
	// Request names the call in the log and elsewhere.
	Request     string
	Command     string
	ContainerID string // empty for GC and STATUS
	// IfName is the interface's name in the pod. It is empty for GC and STATUS, and
	// for a DEL that gives none: it is for all interfaces of the container.
	IfName    string
	NetNSPath string  // as the runtime named it, in the runtime's mount namespace
	Pod       pod.Ref // zero if the runtime is not Kubernetes'
	Config    Config

	// NetNS is the pod's network namespace, checked to be one and not the
	// node's own. It is never nil for ADD and CHECK; for DEL it is nil if the
	// namespace is gone. It is closed when the Backend's method returns.
	NetNS *os.File
}

// AttachmentID names an attachment as the CNI spec does: one interface of one
// container in the network.
type AttachmentID struct {
	ContainerID string
	IfName      string
}

// Attachment returns which attachment the call is about.
func (c *Call) Attachment() AttachmentID {
	return AttachmentID{ContainerID: c.ContainerID, IfName: c.IfName}
}

// Config is what flock reads of its network configuration.
type Config struct {
	CNIVersion string
	// Name is the network's. It is empty for a DEL that gives none: it is for all
	// networks.
	Name string
	// MTU is the pod's in bytes: runtimeConfig.mtu, else mtu, else 0. Only ADD and
	// CHECK have it.
	MTU int
	// HostPorts are the node's ports that shall lead to the pod:
	// runtimeConfig.portMappings. Only ADD and CHECK have them.
	HostPorts []pod.HostPort
	// PrevResult is what the whole list returned for ADD, as the runtime remembers
	// it for CHECK. It is nil if there is none, and for DEL, which does not need it.
	PrevResult *types100.Result
	// Raw is the whole configuration as the runtime gave it.
	Raw json.RawMessage

	valid []AttachmentID // GC: what must stay
}

// parseCall reads what the plugin sent. The version it returns is the one to
// answer in, and is right as far as it could be known when err is not nil.
func parseCall(r wire.Request) (c *Call, cniVersion string, err error) {
	env := environment(r.Env)
	c = &Call{
		Command:     env["CNI_COMMAND"],
		ContainerID: env["CNI_CONTAINERID"],
		IfName:      env["CNI_IFNAME"],
		NetNSPath:   env["CNI_NETNS"],
	}
	cniVersion = latestVersion
	raw, err := c.Config.parse(r.Stdin)
	if isVersion(c.Config.CNIVersion) {
		cniVersion = c.Config.CNIVersion
	}
	if c.Command == CommandDel {
		return c, cniVersion, c.parseDel(env["CNI_ARGS"])
	}
	if err != nil {
		return nil, cniVersion, err
	}
	if err := checkCommand(c.Command, c.Config.CNIVersion); err != nil {
		return nil, cniVersion, err
	}
	if c.Command == CommandGC {
		c.Config.valid, err = parseValid(r.Stdin)
		return c, cniVersion, err
	}
	if c.Config.MTU, c.Config.HostPorts, err = raw.link(); err != nil || c.Command == CommandStatus {
		return c, cniVersion, err
	}
	if c.Config.PrevResult, err = raw.prevResult(); err != nil {
		return nil, cniVersion, err
	}
	return c, cniVersion, c.checkAttachment(env["CNI_ARGS"])
}

// parseDel reads what there is of a DEL. A runtime repeats a DEL that is refused for
// ever, and its pod never ends, so only the container ID has to be right. Without a
// valid network name or interface name all that match the rest are detached.
func (c *Call) parseDel(args string) error {
	if !validName(c.ContainerID) {
		return invalidContainerID(c.ContainerID)
	}
	if !validName(c.Config.Name) {
		c.Config.Name = ""
	}
	if !validIfName(c.IfName) {
		c.IfName = ""
	}
	c.Pod, _ = parsePod(args)
	return nil
}

func invalidContainerID(id string) error {
	return InvalidEnvironment("CNI_CONTAINERID=%q: want a letter or digit, then letters, digits, '_', '.' and '-'", id)
}

func environment(kvs []string) map[string]string {
	env := make(map[string]string, len(kvs))
	for _, kv := range kvs {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	return env
}

func isVersion(s string) bool {
	_, _, _, err := version.ParseVersion(s)
	return s != "" && err == nil
}

// rawConfig holds the fields of a configuration that not every command needs.
type rawConfig struct {
	CNIVersion    string          `json:"cniVersion"`
	Name          string          `json:"name"`
	MTU           json.RawMessage `json:"mtu"`
	RuntimeConfig json.RawMessage `json:"runtimeConfig"`
	PrevResult    json.RawMessage `json:"prevResult"`
}

// parse reads which network the configuration is of. On an error it fills in what it
// could read.
func (c *Config) parse(stdin []byte) (raw rawConfig, err error) {
	err = json.Unmarshal(stdin, &raw)
	c.CNIVersion, c.Name, c.Raw = raw.CNIVersion, raw.Name, slices.Clone(stdin)
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrongType) && wrongType.Field != "":
		return raw, wrongTypeError("", wrongType)
	case err != nil:
		return raw, newError(CodeDecode, "network configuration on standard input is not a JSON object: %w", err)
	case !slices.Contains(SupportedVersions, c.CNIVersion):
		return raw, newError(CodeIncompatibleVersion, "network configuration: cniVersion=%q: flock speaks %s", c.CNIVersion, strings.Join(SupportedVersions, ", "))
	case !validName(c.Name):
		return raw, InvalidConfig("network configuration: name=%q: want a letter or digit, then letters, digits, '_', '.' and '-'", c.Name)
	}
	return raw, nil
}

func wrongTypeError(parent string, err *json.UnmarshalTypeError) error {
	want := err.Type.String()
	if err.Type.Kind() == reflect.Struct {
		want = "object"
	}
	return InvalidConfig("network configuration: %s: is a JSON %s, want %s", strings.Trim(parent+"."+err.Field, "."), err.Value, want)
}

// link returns the pod's MTU in bytes, 0 if the configuration leaves it to the agent, and
// the node's ports for it.
func (raw rawConfig) link() (mtu int, ports []pod.HostPort, err error) {
	var runtime struct {
		MTU          json.RawMessage `json:"mtu"`
		PortMappings json.RawMessage `json:"portMappings"`
	}
	if err := unmarshal("runtimeConfig", raw.RuntimeConfig, &runtime); err != nil {
		return 0, nil, err
	}
	const mappings = "runtimeConfig.portMappings"
	if err := unmarshal(mappings, runtime.PortMappings, &ports); err != nil {
		return 0, nil, err
	}
	for i := range ports {
		ports[i].Protocol = strings.ToLower(ports[i].Protocol)
		if err := ports[i].Validate(); err != nil {
			return 0, nil, InvalidConfig("network configuration: %s: %w", mappings, err)
		}
	}
	for _, m := range []struct {
		field string
		value json.RawMessage
	}{{"mtu", raw.MTU}, {"runtimeConfig.mtu", runtime.MTU}} {
		if err := unmarshal(m.field, m.value, &mtu); err != nil {
			return 0, nil, err
		}
		// Below 1,280 bytes there is no IPv6 (RFC 8200 section 5).
		if mtu != 0 && (mtu < 1280 || mtu > 65535) {
			return 0, nil, InvalidConfig("network configuration: %s=%d: want 1280 to 65535, or 0 to leave it to the agent", m.field, mtu)
		}
	}
	return mtu, ports, nil
}

// unmarshal reads the field of that name into value. A field that is absent or null
// leaves value as it is.
func unmarshal(field string, raw json.RawMessage, value any) error {
	if len(raw) == 0 {
		return nil
	}
	err := json.Unmarshal(raw, value)
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return wrongTypeError(field, wrongType)
	}
	if err != nil {
		return InvalidConfig("network configuration: %s: %w", field, err)
	}
	return nil
}

// prevResult is nil if the runtime gave none.
func (raw rawConfig) prevResult() (*types100.Result, error) {
	if len(raw.PrevResult) == 0 || string(raw.PrevResult) == "null" {
		return nil, nil
	}
	prev, err := parsePrevResult(raw.CNIVersion, raw.PrevResult)
	if err != nil {
		return nil, newError(CodeDecode, "network configuration: prevResult: %w", err)
	}
	return prev, nil
}

// parsePrevResult reads a result in whichever version it says it is, as plugins
// of other versions may stand in the same list, or in the list's if it says none.
func parsePrevResult(cniVersion string, raw []byte) (*types100.Result, error) {
	var said struct {
		CNIVersion string            `json:"cniVersion"`
		Interfaces []json.RawMessage `json:"interfaces"`
		IPs        []json.RawMessage `json:"ips"`
		Routes     []json.RawMessage `json:"routes"`
	}
	if err := json.Unmarshal(raw, &said); err != nil {
		return nil, err
	}
	// The types of the CNI library hold pointers, and it follows them all.
	for _, entry := range slices.Concat(said.Interfaces, said.IPs, said.Routes) {
		if string(entry) == "null" {
			return nil, errors.New("null in a list")
		}
	}
	if said.CNIVersion == "" {
		var fields map[string]any
		if err := json.Unmarshal(raw, &fields); err != nil {
			return nil, err
		}
		fields["cniVersion"] = cniVersion
		withVersion, err := json.Marshal(fields)
		if err != nil {
			return nil, err
		}
		said.CNIVersion, raw = cniVersion, withVersion
	}
	result, err := version.NewResult(said.CNIVersion, raw)
	if err != nil {
		return nil, err
	}
	return types100.NewResultFromResult(result)
}

// checkCommand says whether command is one, and one that cniVersion has.
func checkCommand(command, cniVersion string) error {
	since := map[string]string{
		CommandAdd:    "0.3.1",
		CommandDel:    "0.3.1",
		CommandCheck:  "0.4.0",
		CommandGC:     "1.1.0",
		CommandStatus: "1.1.0",
	}
	first, known := since[command]
	if !known {
		return InvalidEnvironment("CNI_COMMAND=%q: want ADD, DEL, CHECK, GC, STATUS or VERSION", command)
	}
	// The supported versions are in order, and cniVersion is one of them.
	if slices.Index(SupportedVersions, cniVersion) < slices.Index(SupportedVersions, first) {
		return newError(CodeIncompatibleVersion, "CNI_COMMAND=%s needs cniVersion %s or later in the network configuration, which says %s", command, first, cniVersion)
	}
	return nil
}

// checkAttachment checks what ADD and CHECK need, and reads CNI_ARGS.
func (c *Call) checkAttachment(args string) (err error) {
	if !validName(c.ContainerID) {
		return invalidContainerID(c.ContainerID)
	}
	if !validIfName(c.IfName) {
		return InvalidEnvironment("CNI_IFNAME=%q: want 1 to 15 characters, not '.' or '..', with no '/', ':' or space", c.IfName)
	}
	if c.NetNSPath == "" {
		return InvalidEnvironment("CNI_NETNS is not set: %s needs the pod's network namespace", c.Command)
	}
	if c.Command == CommandAdd && c.Config.PrevResult != nil {
		return InvalidConfig("network configuration: a plugin stands before flock in the list of network %q: flock makes the pod's interface, so it must be the first", c.Config.Name)
	}
	if c.Command == CommandCheck && c.Config.PrevResult == nil {
		return InvalidConfig("network configuration: prevResult is missing: CHECK needs what ADD returned")
	}
	c.Pod, err = parsePod(args)
	return err
}

// parsePod reads CNI_ARGS, "K=V;K=V", passing over keys that are not ours
// (as containerd's IgnoreUnknown=1 asks).
func parsePod(args string) (pod.Ref, error) {
	var p pod.Ref
	if args == "" {
		return p, nil
	}
	for pair := range strings.SplitSeq(args, ";") {
		if pair == "" {
			continue
		}
		k, v, found := strings.Cut(pair, "=")
		if !found {
			return pod.Ref{}, InvalidEnvironment("CNI_ARGS=%q: %q is not KEY=VALUE", args, pair)
		}
		switch k {
		case "K8S_POD_NAMESPACE":
			p.Namespace = v
		case "K8S_POD_NAME":
			p.Name = v
		case "K8S_POD_UID":
			p.UID = pod.UID(v)
		}
	}
	if (p.Namespace == "") != (p.Name == "") {
		return pod.Ref{}, InvalidEnvironment("CNI_ARGS=%q: want both K8S_POD_NAMESPACE and K8S_POD_NAME, or neither", args)
	}
	return p, nil
}

// parseValid reads GC's list. A list that is not there must not be taken for an
// empty one: everything would be deleted. libcni writes an empty one as null.
func parseValid(stdin []byte) ([]AttachmentID, error) {
	const key = "cni.dev/valid-attachments"
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &fields); err != nil {
		return nil, newError(CodeDecode, "network configuration: %w", err)
	}
	raw, there := fields[key]
	if !there {
		return nil, InvalidConfig("network configuration: %s is missing: GC needs the attachments to keep", key)
	}
	var listed []types.GCAttachment
	if err := json.Unmarshal(raw, &listed); err != nil {
		return nil, InvalidConfig("network configuration: %s: %w", key, err)
	}
	valid := make([]AttachmentID, 0, len(listed))
	for _, a := range listed {
		if !validName(a.ContainerID) || !validIfName(a.IfName) {
			return nil, InvalidConfig("network configuration: %s: containerID=%q ifname=%q: not an attachment", key, a.ContainerID, a.IfName)
		}
		valid = append(valid, AttachmentID{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	return valid, nil
}

// validName is the spec's rule for container IDs and network names ("Parameters").
func validName(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return s != ""
}

// validIfName is what the kernel accepts as a name (dev_valid_name).
func validIfName(s string) bool {
	if s == "" || len(s) > 15 || s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c == '/', c == ':', c == ' ', c == 0xa0, c == 0, '\t' <= c && c <= '\r':
			return false
		}
	}
	return true
}
