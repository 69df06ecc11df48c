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
	"k8s.io/client-go/tools/clientcmd"

	"flock.fritzlab.net/flock/pkg/version"
)

// command is a word of the command line.
type command struct {
	name, args string
	short      string
	long       string
	examples   string   // a line each, without the program's name
	flags      []string // of its own
	min, max   int      // arguments
	run        func(ctx context.Context, s *session, args []string) error
}

var commands = []command{nodeCommand, anycastCommand, podCommand, renderCommand, {
	name: "version", short: "Say which version this is",
	run: func(_ context.Context, s *session, _ []string) error {
		_, err := fmt.Fprintln(s.out, version.Version)
		return err
	},
}}

// special are the flags that not all commands have.
var special = []string{"output", "filename", "on-link", "address"}

// session is one run of the program.
type session struct {
	in      io.Reader
	out     io.Writer
	remarks io.Writer // beside the answer
	now     time.Time
	connect func() (*cluster, error) // to the API server, for commands that need it
	// Flags.
	output, filename  string
	onLink, addresses []string
}

// Main runs the command line argv, whose first element is the program's name, and
// returns its exit status: 0, 1 for what went wrong and 2 for a command line that
// makes no sense.
func Main(ctx context.Context, argv []string, in io.Reader, out, complaints io.Writer) int {
	program := filepath.Base(argv[0])
	if plugin, ok := strings.CutPrefix(program, "kubectl-"); ok {
		program = "kubectl " + plugin
	}
	s := &session{in: in, out: out, remarks: complaints, now: time.Now()}
	err := s.run(ctx, program, argv[1:])
	var usage usageError
	switch {
	case err == nil:
		return 0
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
	help := flags.BoolP("help", "h", false, "say more")
	flags.StringVarP(&s.output, "output", "o", "", "answer in a `format` for programs: json or yaml")
	flags.StringVarP(&s.filename, "filename", "f", "", "`file` with NodeConfig, AddressPools, NodeConfigTemplates; - for standard input")
	flags.StringSliceVar(&s.onLink, "on-link", nil, "`prefixes` of the node's links, which only the node knows: 2001:db8:0:1::/64,192.0.2.0/24")
	flags.StringSliceVar(&s.addresses, "address", nil, "`addresses` of the node, its InternalIPs, where a file says what it is: 2001:db8:0:1::11,192.0.2.11")
	if s.connect == nil {
		s.connect = connection(flags)
	}
	if err := flags.Parse(args); err != nil {
		return usageError(fmt.Sprintf("%v: %s --help says what there is", err, program))
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
	if n := len(args) - 1; n < c.min || n > c.max {
		return usageError(fmt.Sprintf("%d arguments: want %s %s %s", n, program, c.name, c.args))
	}
	for _, name := range special {
		if flags.Changed(name) && !slices.Contains(c.flags, name) {
			return usageError(fmt.Sprintf("%s has no flag --%s: %s %s --help says what it has", c.name, name, program, c.name))
		}
	}
	if !slices.Contains([]string{"", "json", "yaml"}, s.output) {
		return usageError(fmt.Sprintf("--output %s: want json or yaml, or no such flag for a table", s.output))
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

func names() string {
	var all []string
	for _, c := range commands {
		all = append(all, c.name)
	}
	return strings.Join(all, ", ")
}

func overview(w io.Writer, program string, flags *pflag.FlagSet) error {
	fmt.Fprintf(w, `%[1]s tells what flock is doing, and why. It changes nothing.

  %[1]s node                      a line for each node, and what is wrong
  %[1]s node node1                one node: configuration, sessions, anycast addresses
  %[1]s pod shop/web-0            a pod: what it asks for, what it has, what happened
  %[1]s anycast                   each anycast address: its pods, announced or not, why
  %[1]s anycast 2001:db8::53      one of them
  %[1]s render -f node1.yaml      the configuration of BIRD, before it is applied

Commands:
`, program)
	var rows [][]string
	for _, c := range commands {
		rows = append(rows, []string{strings.TrimSpace(c.name + " " + c.args), c.short})
	}
	table(w, "  ", rows)
	fmt.Fprintf(w, "\nFlags, those of kubectl among them:\n%s\n%s COMMAND --help says more of each.\n", usages(flags, nil), program)
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
