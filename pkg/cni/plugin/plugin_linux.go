package plugin

import (
	"syscall"

	"flock.fritzlab.net/flock/pkg/cni/wire"
)

// DefaultSocket is where the agent listens.
const DefaultSocket = "/run/flock/cni.sock"

// DefaultTimeoutSeconds bounds the wait for the agent. An ADD takes
// milliseconds; the longest that the agent itself waits is for the pod to show
// up at the kubelet. The kubelet gives up on a sandbox after four minutes.
const DefaultTimeoutSeconds = 60

const lookAtAgent = "look at it: kubectl -n flock-system get pods -l app.kubernetes.io/name=flock -o wide, and kubectl -n flock-system logs -l app.kubernetes.io/name=flock -c agent"

// Plugin is one run of the plugin's process.
type Plugin struct {
	Socket         string // the agent's, unless the configuration says agentSocket
	TimeoutSeconds int    // how long to wait for the agent
	Release        string // of flock, for people
}

// The messages' buffers. They lie in the zeroed part of the process and cost
// only the pages that are used. One byte more than the limit shows what is over
// it.
var (
	stdin    [wire.MaxMessage]byte
	request  [2 * wire.MaxMessage]byte
	response [wire.MaxMessage + 1]byte
)

// resumed is how far quick came, before it left the rest to Run.
var resumed struct {
	stdin      int // bytes read
	stdinEnded bool
	deadline   int64 // of the wait for the agent, which has begun; or 0
	asked      bool  // the agent has the request
	socket     int   // on which it answers
	answer     int   // bytes of its answer
}

// Run reads the environment and standard input, does what CNI_COMMAND says, and
// prints the answer. It returns the process's exit code.
func (p Plugin) Run() int {
	env, command, netNSPath := cniEnvironment()
	if command == "" {
		return p.explain()
	}
	config, f := readConfig()
	said := scan(config)
	del := command == "DEL" // the agent makes of it what it can
	if f != nil && !del {
		return fail(f, said)
	}
	if command == "VERSION" {
		return print(appendVersions(nil, said.cniVersion), 0)
	}

	r := wire.Request{Env: env, Stdin: config}
	netNS := -1
	if netNSPath != "" {
		var err error
		// Not blocking: the path may be a pipe for all we know. What it is, the
		// agent looks at.
		netNS, err = syscall.Open(netNSPath, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
		if err != nil {
			netNS, r.NetNSErrno = -1, errno(err)
		}
	}
	message := wire.AppendRequest(request[:0], r)
	if len(message) > wire.MaxMessage && del {
		r.Stdin = nil
		message = wire.AppendRequest(request[:0], r)
	}
	if len(message) > wire.MaxMessage {
		return fail(tooLong(len(message)), said)
	}
	c := call{
		socket:  p.Socket,
		timeout: p.TimeoutSeconds,
		status:  command == "STATUS",
	}
	if said.agentSocket != "" {
		c.socket = said.agentSocket
	}
	var answer wire.Response
	if resumed.asked {
		answer, f = c.await(resumed.socket, resumed.answer, resumed.deadline)
	} else {
		answer, f = c.ask(message, netNS)
	}
	if f != nil {
		return fail(f, said)
	}
	return print(answer.Output, int(answer.Exit))
}

// cniEnvironment picks the CNI_* variables, and the two that matter here.
func cniEnvironment() (env []string, command, netNSPath string) {
	for _, kv := range syscall.Environ() {
		if len(kv) < 4 || kv[:4] != "CNI_" {
			continue
		}
		env = append(env, kv)
		if v, ok := value(kv, "CNI_COMMAND="); ok {
			command = v
		} else if v, ok := value(kv, "CNI_NETNS="); ok {
			netNSPath = v
		}
	}
	return env, command, netNSPath
}

func value(kv, name string) (string, bool) {
	if len(kv) < len(name) || kv[:len(name)] != name {
		return "", false
	}
	return kv[len(name):], true
}

// readConfig reads standard input to its end.
func readConfig() ([]byte, *failure) {
	n := resumed.stdin
	if resumed.stdinEnded {
		return stdin[:n], nil
	}
	for n < len(stdin) {
		got, err := syscall.Read(0, stdin[n:])
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return stdin[:n], &failure{code: codeIO, msg: "flock could not read the network configuration from standard input: " + err.Error()}
		case got == 0:
			return stdin[:n], nil
		default:
			n += got
		}
	}
	return stdin[:], tooLong(len(stdin))
}

func tooLong(n int) *failure {
	return &failure{
		code:    codeInvalidConfig,
		msg:     "the network configuration and the CNI_* variables have " + itoa(n) + " bytes or more; flock takes " + itoa(wire.MaxMessage-1),
		details: "look for what makes it so long in /etc/cni/net.d, or, for GC, at the number of attachments",
	}
}

func fail(f *failure, said spoken) int {
	return print(appendFailure(nil, *f, said.cniVersion), 1)
}

// print writes b to standard output and returns exit, or 1 if that fails.
func print(b []byte, exit int) int {
	if !write(1, b) {
		return 1
	}
	return exit
}

func write(fd int, b []byte) bool {
	for len(b) > 0 {
		n, err := syscall.Write(fd, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return false
		}
		b = b[n:]
	}
	return true
}

func errno(err error) uint32 {
	if e, ok := err.(syscall.Errno); ok {
		return uint32(e)
	}
	return uint32(syscall.EIO)
}

// explain is for a person who starts the plugin by hand. Standard output gets
// the error that a runtime would need, should it be one that forgot the variable.
func (p Plugin) explain() int {
	write(2, []byte(`flock `+p.Release+`: the CNI plugin of flock, a Kubernetes network for nodes with real routers.

It is not started by hand. The container runtime starts it for each pod that
comes or goes, says what to do in CNI_* variables, and gives it the network
configuration (/etc/cni/net.d/01-flock.conflist) on standard input. It hands
both, with the pod's network namespace, to flock-agent on this node through
`+p.Socket+`, and prints what the agent answers.

To see which versions of the CNI spec it speaks:
  echo '{"cniVersion":"1.1.0"}' | CNI_COMMAND=VERSION flock
To ask whether this node can take pods:
  CNI_COMMAND=STATUS flock <<< '{"cniVersion":"1.1.0","name":"flock","type":"flock"}'
`))
	if isTerminal(1) {
		return 0
	}
	return fail(&failure{code: codeInvalidEnvironment, msg: "CNI_COMMAND is not set: want ADD, DEL, CHECK, GC, STATUS or VERSION"}, spoken{})
}
