package flockctl

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
)

var sysdumpCommand = command{
	name:  "sysdump",
	short: "Write what helps to find a fault into one archive, without secrets",
	long: `flock's objects, the nodes, flock's own pods and their logs, and the Events about them,
in a .tar.gz. It never reads a Secret, and takes what looks like a secret out of the
rest: values of environment variables, annotations of others than flock and Kubernetes,
passwords, tokens, keys. Names and addresses of
nodes, pods and routers are in it: read it before you send it. What cannot be read is
named in the file errors.txt, and the rest is there. The exit status is 1 if nothing is.`,
	examples: `flockctl sysdump
flockctl sysdump -f flock.tar.gz`,
	flags: []string{"filename"},
	run:   runSysdump,
}

const (
	// logLines of each container, and of the one before it.
	logLines = "5000"
	// failuresFile names what could not be read.
	failuresFile = "errors.txt"
)

func runSysdump(ctx context.Context, s *session, _ []string) error {
	c, err := s.connect()
	if err != nil {
		return err
	}
	name := s.filename
	if name == "" {
		name = "flock-sysdump-" + s.now.UTC().Format("20060102-150405") + ".tar.gz"
	}
	if name == "-" {
		return usageError("-f -: want the name of a file for the archive")
	}
	files := c.dump(ctx, s)
	content, err := archive(files, s.now)
	if err != nil {
		return err
	}
	if err := os.WriteFile(name, content, 0o600); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "%s has %d files. It holds names and addresses of your cluster: read it before you send it.\n", name, len(files))
	if missing := files[failuresFile]; missing != nil {
		if len(files) == 1 {
			return fmt.Errorf("nothing could be read: %s in the archive says why", failuresFile)
		}
		fmt.Fprintf(s.remarks, "%d things could not be read: %s in the archive has them\n", bytes.Count(missing, []byte("\n")), failuresFile)
	}
	return nil
}

// dump collects the files, by name, with nothing in them that looks like a secret.
func (c *cluster) dump(ctx context.Context, s *session) map[string][]byte {
	files := map[string][]byte{}
	var failures []string
	fail := func(what string, err error) { failures = append(failures, fmt.Sprintf("%s: %v", what, err)) }

	objects := func(file string, from rest.Interface, resource, namespace string) {
		raw, err := from.Get().NamespaceIfScoped(namespace, namespace != "").Resource(resource).SetHeader("Accept", "application/json").Do(ctx).Raw()
		if err != nil {
			fail(file, c.explain(err, "list", resource))
			return
		}
		text, err := withoutSecrets(raw)
		if err != nil {
			fail(file, err)
			return
		}
		files[file] = text
	}
	for _, resource := range []string{"nodeconfigs", "nodeconfigtemplates", "addresspools", "addressclaims"} {
		objects("objects/"+resource+".yaml", c.flock, resource, "")
	}
	objects("objects/nodes.yaml", c.core, "nodes", "")
	for _, resource := range []string{"pods", "events", "services"} {
		objects("objects/"+resource+".yaml", c.core, resource, flockNamespace)
	}

	pods := &corev1.PodList{}
	if err := c.list(ctx, c.core, "pods", flockNamespace, "app.kubernetes.io/name in (flock,flock-controller)", "", pods); err != nil {
		fail("logs", err)
	}
	for _, p := range pods.Items {
		for _, container := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
			for _, previous := range []bool{false, true} {
				log, err := c.core.Get().Namespace(p.Namespace).Resource("pods").Name(p.Name).SubResource("log").
					Param("container", container.Name).Param("tailLines", logLines).Param("timestamps", "true").Param("previous", fmt.Sprint(previous)).Do(ctx).Raw()
				file := fmt.Sprintf("logs/%s/%s-%s.log", or(p.Spec.NodeName, "no-node"), p.Name, container.Name)
				switch {
				case previous && err != nil: // there was none before
				case err != nil:
					fail(file, err)
				case previous:
					files[strings.TrimSuffix(file, ".log")+"-previous.log"] = []byte(withoutSecretText(string(log)))
				default:
					files[file] = []byte(withoutSecretText(string(log)))
				}
			}
		}
	}

	var text bytes.Buffer
	view := *s
	view.out, view.colour, view.output = &text, false, ""
	for file, run := range map[string]func() error{
		"status.txt": func() error { return runStatus(ctx, &view, nil) },
		"nodes.txt":  func() error { return runNode(ctx, &view, nil) },
		"routes.txt": func() error { return runRoutes(ctx, &view, nil) },
		"pools.txt":  func() error { return runPool(ctx, &view, nil) },
	} {
		text.Reset()
		if err := run(); err != nil {
			fail(file, err)
			continue
		}
		files[file] = []byte(withoutSecretText(text.String()))
	}
	if len(failures) > 0 {
		slices.Sort(failures)
		files[failuresFile] = []byte(withoutSecretText(strings.Join(failures, "\n") + "\n"))
	}
	return files
}

// archive is a .tar.gz of the files.
func archive(files map[string][]byte, now time.Time) ([]byte, error) {
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	tw := tar.NewWriter(gz)
	for _, name := range names {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: "flock-sysdump/" + name, Mode: 0o600, Size: int64(len(files[name])), ModTime: now}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := tw.Write(files[name]); err != nil {
			return nil, err
		}
	}
	err := errors.Join(tw.Close(), gz.Close())
	return b.Bytes(), err
}
