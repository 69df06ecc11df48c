package flockctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"

	"flock.fritzlab.net/flock/internal/version"
)

// command is a word of the command line.
type command struct {
	name, args string
	short      string
	long       string
	examples   string   // a line each, without the program's name
	flags      []string // of its own
	min, max   int      // arguments
	hidden     bool     // from people
	wide       bool     // it has more columns to show
	run        func(ctx context.Context, s *session, args []string) error
}

// commands are all, in the order in which help lists them. init avoids a cycle: the
// completion reads them.
var commands []command

func init() {
	commands = []command{statusCommand, nodeCommand, podCommand, addrCommand, routesCommand, anycastCommand, serviceCommand, poolCommand, traceCommand, policyCommand, renderCommand, checkCommand, drainCommand, sysdumpCommand, completionCommand, completeCommand, {
		name: "version", short: "Say which version this is",
		run: func(_ context.Context, s *session, _ []string) error {
			_, err := fmt.Fprintln(s.out, version.Version)
			return err
		},
	}}
}

// special are the flags that not all commands have.
var special = []string{"output", "filename", "on-link", "address", "undo", "local", "watch", "agents"}

// session is one run of the program.
type session struct {
	in      io.Reader
	out     io.Writer
	remarks io.Writer // beside the answer
	now     time.Time
	connect func() (*cluster, error) // to the API server, for commands that need it
	// ask asks an agent; nil is over the API server.
	ask func(ctx context.Context, agent *corev1.Pod, path string) ([]byte, error)
	// Flags.
	output, filename  string
	undo, local       bool
	agents            bool
	watch             bool
	wide              bool // --output wide
	colour            bool
	program           string // as it is called
	onLink, addresses []string
}

// Main runs the command line argv, the program's name first, and returns its exit
// status: 0, 1 for what went wrong, 2 for a command line that makes no sense and 3 for a
// trace of what is denied.
func Main(ctx context.Context, argv []string, in io.Reader, out, complaints io.Writer) int {
	program := filepath.Base(argv[0])
	if plugin, ok := strings.CutPrefix(program, "kubectl-"); ok {
		program = "kubectl " + plugin
	}
	s := &session{in: in, out: out, remarks: complaints, now: time.Now(), colour: isTerminal(out)}
	err := s.run(ctx, program, argv[1:])
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errDenied):
		return 3
	case errors.As(err, &usage):
		fmt.Fprintf(complaints, "%s: %v\n", program, err)
		return 2
	}
	fmt.Fprintf(complaints, "%s: %v\n", program, err)
	return 1
}

// usageError is a command line that makes no sense.
type usageError string

func (e usageError) Error() string { return string(e) }

func (s *session) run(ctx context.Context, program string, args []string) error {
	flags := pflag.NewFlagSet(program, pflag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error says it
	flags.SortFlags = false
	help := flags.BoolP("help", "h", false, "show help")
	flags.StringVarP(&s.output, "output", "o", "", "answer in a `format`: json or yaml for programs; of nodes and services also wide, for more columns")
	flags.BoolVarP(&s.watch, "watch", "w", false, "show it again every two seconds")
	flags.StringVarP(&s.filename, "filename", "f", "", "`file` with NodeConfig, AddressPools, NodeConfigTemplates, - for standard input; with sysdump, the archive to write")
	flags.StringSliceVar(&s.onLink, "on-link", nil, "`prefixes` of the node's links, which only the node knows: 2001:db8:0:1::/64,192.0.2.0/24")
	flags.StringSliceVar(&s.addresses, "address", nil, "`addresses` of the node, its InternalIPs, for use with -f: 2001:db8:0:1::11,192.0.2.11")
	flags.BoolVar(&s.local, "local", false, "look at the kernel of this machine, as root, and ask no API server")
	flags.BoolVar(&s.agents, "agents", false, "ask the nodes' agents too: what they have in force, and their counters")
	flags.BoolVar(&s.undo, "undo", false, "announce the anycast addresses again")
	if s.connect == nil {
		s.connect = connection(flags)
	}
	if err := flags.Parse(args); err != nil {
		return usageError(fmt.Sprintf("%v: %s --help lists the flags", err, program))
	}
	args = flags.Args()
	if len(args) > 0 && args[0] == "help" {
		*help, args = true, args[1:]
	}
	if len(args) == 0 {
		return overview(s.out, program, flags)
	}
	i := slices.IndexFunc(commands, func(c command) bool { return c.name == args[0] || c.name+"s" == args[0] })
	if i < 0 {
		return usageError(fmt.Sprintf("there is no command %q: want one of %s", args[0], names()))
	}
	c := commands[i]
	if *help {
		return c.help(s.out, program, flags)
	}
	want := strings.TrimSpace(fmt.Sprintf("want %s %s %s", program, c.name, c.args))
	switch n := len(args) - 1; {
	case n < c.min:
		return usageError(fmt.Sprintf("an argument is missing: %s", want))
	case n > c.max:
		return usageError(fmt.Sprintf("%q is one argument too many: %s", args[1+c.max], want))
	}
	for _, name := range special {
		if flags.Changed(name) && !slices.Contains(c.flags, name) {
			return usageError(fmt.Sprintf("%s has no flag --%s: %s %s --help lists its flags", c.name, name, program, c.name))
		}
	}
	if formats := c.formats(); s.output != "" && !slices.Contains(formats, s.output) {
		return usageError(fmt.Sprintf("--output %s: want %s; leave the flag out for a table", s.output, enumerate(formats)))
	}
	s.program = program
	if s.output == "wide" {
		s.wide, s.output = true, ""
	}
	if s.watch {
		return s.repeat(ctx, func(s *session) error { return c.run(ctx, s, args[1:]) })
	}
	return c.run(ctx, s, args[1:])
}

// connection adds kubectl's flags to flags and returns what makes the connection that
// they ask for.
func connection(flags *pflag.FlagSet) func() (*cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	overrides := &clientcmd.ConfigOverrides{}
	flags.StringVar(&rules.ExplicitPath, "kubeconfig", "", "`file` that says where the API server is (default: $KUBECONFIG, then ~/.kube/config)")
	clientcmd.BindOverrideFlags(overrides, flags, clientcmd.RecommendedConfigOverrideFlags(""))
	flags.VisitAll(func(f *pflag.Flag) {
		switch f.Name {
		case "context":
			f.Usage = "`name` of the kubeconfig's context to use"
		case "namespace":
			f.Usage = "`name` of the namespace, for a pod that is given without"
		case "help", "kubeconfig":
		default:
			f.Hidden = !slices.Contains(special, f.Name) // it works as in kubectl
		}
	})
	return func() (*cluster, error) {
		config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
		server, err := config.ClientConfig()
		if clientcmd.IsEmptyConfig(err) {
			return nil, errors.New("no API server is known: set KUBECONFIG or give --kubeconfig, as for kubectl")
		}
		if err != nil {
			return nil, fmt.Errorf("%w: check --kubeconfig and --context, as for kubectl", err)
		}
		namespace, _, err := config.Namespace()
		if err != nil {
			return nil, err
		}
		return newCluster(server, namespace)
	}
}

// formats are what --output can be.
func (c command) formats() []string {
	if c.wide {
		return []string{"json", "yaml", "wide"}
	}
	return []string{"json", "yaml"}
}

// enumerate is a list as people write it: json, yaml or wide.
func enumerate(all []string) string {
	last := len(all) - 1
	return strings.Join(all[:last], ", ") + " or " + all[last]
}

func names() string {
	var all []string
	for _, c := range commands {
		if !c.hidden {
			all = append(all, c.name)
		}
	}
	return strings.Join(all, ", ")
}

func overview(w io.Writer, program string, flags *pflag.FlagSet) error {
	fmt.Fprintf(w, `%[1]s shows what flock is doing, and why.

  %[1]s status                    the cluster at a glance, what is wrong, the next command
  %[1]s node                      a line for each node, and what is wrong
  %[1]s node node1                one node: configuration, sessions, anycast addresses
  %[1]s pod shop/web-0            a pod: what it asks for, what it has, what happened
  %[1]s addr 2001:db8:100:1::7    an address: who has it, where it is announced
  %[1]s routes                    the prefixes that each node announces
  %[1]s anycast                   each anycast address: its pods, announced or not, why
  %[1]s anycast 2001:db8::53      one of them
  %[1]s service                   each Service's addresses: which nodes announce them, why others do not
  %[1]s service shop/front        one of them
  %[1]s pool                      each AddressPool: how many addresses are in use, and where
  %[1]s trace shop/web-0 shop/db   may it connect, by which policies, and which way
  %[1]s policy shop/web-0         the policies' rules about a pod, and whom they allow
  %[1]s render -f node1.yaml      the configuration of BIRD, before it is applied
  %[1]s check                     all that is wrong; exit status 1 if anything is
  %[1]s drain node1               withdraw a node's anycast addresses ahead of a shutdown
  %[1]s sysdump                   an archive that helps to find a fault, without secrets

Commands:
`, program)
	var rows [][]string
	for _, c := range commands {
		if !c.hidden {
			rows = append(rows, []string{strings.TrimSpace(c.name + " " + c.args), c.short})
		}
	}
	table(w, "  ", rows)
	fmt.Fprintf(w, "\nFlags, those of kubectl among them:\n%s\n%s COMMAND --help describes each command.\n", usages(flags, nil), program)
	return nil
}

func (c command) help(w io.Writer, program string, flags *pflag.FlagSet) error {
	fmt.Fprintf(w, "%s\n\n  %s\n", c.short, strings.TrimSpace(program+" "+c.name+" "+c.args))
	if c.long != "" {
		fmt.Fprintf(w, "\n%s\n", c.long)
	}
	if c.examples != "" {
		fmt.Fprintln(w, "\nExamples:")
		for line := range strings.Lines(c.examples) {
			fmt.Fprint(w, "  ", strings.ReplaceAll(line, "flockctl", program))
		}
		fmt.Fprintln(w)
	}
	_, err := fmt.Fprintf(w, "\nFlags:\n%s", usages(flags, &c))
	return err
}

// usages are the flags of a command, of all if it is nil.
func usages(flags *pflag.FlagSet, c *command) string {
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	own.SortFlags = false
	flags.VisitAll(func(f *pflag.Flag) {
		if !slices.Contains(special, f.Name) || c == nil && f.Name == "output" || c != nil && slices.Contains(c.flags, f.Name) {
			own.AddFlag(f)
		}
	})
	return own.FlagUsages()
}
