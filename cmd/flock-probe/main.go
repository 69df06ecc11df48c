// Command flock-probe asks the agent on its node whether it lives or is ready. The
// kubelet's probes run it. See docs/deploy.md.
package main

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

const usage = `flock-probe asks the flock-agent of this node about its health.

  flock-probe /healthz|/readyz [SOCKET]

It exits with 0 if the agent answers 200, and with 1 otherwise. It prints the answer.
SOCKET is by default /run/flock/health.sock. A TCP port may belong to another program,
so the kubelet's probes use this and not --health-address.
`

// within bounds the whole question. The probes' timeoutSeconds are above it.
const within = 4 * time.Second

func main() {
	args := os.Args[1:]
	if len(args) > 0 && slices.Contains([]string{"-h", "-help", "--help"}, args[0]) {
		os.Stdout.WriteString(usage)
		return
	}
	if len(args) == 0 || !strings.HasPrefix(args[0], "/") {
		os.Stdout.WriteString(usage)
		os.Exit(2)
	}
	socket := "/run/flock/health.sock"
	if len(args) > 1 {
		socket = args[1]
	}
	body, err := ask(socket, args[0])
	os.Stdout.WriteString(body)
	if err != nil {
		os.Stderr.WriteString("flock-probe: " + err.Error() + "\n")
		os.Exit(1)
	}
}

// ask sends one HTTP/1.0 request. It does without net/http, which takes longer to
// start than the agent to answer.
func ask(socket, path string) (body string, err error) {
	conn, err := net.DialTimeout("unix", socket, within)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(io.LimitReader(conn, 1<<20))
	if err != nil {
		return "", err
	}
	head, body, _ := strings.Cut(string(answer), "\r\n\r\n")
	status, _, _ := strings.Cut(head, "\r\n")
	if fields := strings.Fields(status); len(fields) < 2 || fields[1] != "200" {
		return body, errors.New("the agent answers " + path + " with " + status)
	}
	return body, nil
}
