package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// unpacked is what a written image holds.
type unpacked struct {
	name   string
	config v1.Config
	os     string
	layer  []*tar.Header
	files  map[string][]byte // of the layer
}

func unpack(t *testing.T, file string) unpacked {
	t.Helper()
	archive := must(tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(file) }))
	if len(archive) != 1 || len(archive[0].RepoTags) != 1 {
		t.Fatalf("manifest: %+v", archive)
	}
	image := must(tarball.ImageFromPath(file, nil))
	if err := validate.Image(image); err != nil {
		t.Errorf("digests: %v", err)
	}
	layers := must(image.Layers())
	if len(layers) != 1 {
		t.Fatalf("%d layers, want 1", len(layers))
	}
	config := must(image.ConfigFile())
	u := unpacked{name: must(name.NewTag(archive[0].RepoTags[0])).Name(), config: config.Config, os: config.OS}
	layer := must(layers[0].Uncompressed())
	defer layer.Close()
	u.layer, u.files = readTar(t, layer)
	for _, h := range u.layer {
		if h.ModTime.Unix() != 0 {
			t.Errorf("%s: has the time %v", h.Name, h.ModTime)
		}
	}
	return u
}

func readTar(t *testing.T, r io.Reader) ([]*tar.Header, map[string][]byte) {
	t.Helper()
	var headers []*tar.Header
	files := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return headers, files
		} else if err != nil {
			t.Fatal(err)
		}
		headers = append(headers, h)
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	if err := os.WriteFile(source, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := Spec{
		Ref:        "flock:dev",
		Entrypoint: []string{"/bin/run"},
		Cmd:        []string{"--now"},
		Env:        []string{"A=b"},
		User:       "1:2",
		Entries: []Entry{
			{Path: "/z/link", Link: "../bin/run"},
			File("/bin/run", source),
			{Path: "/etc/own", Content: []byte("own"), Mode: 0o640, UID: 3, GID: 4},
			{Path: "/etc", Mode: fs.ModeDir | 0o700, GID: 5},
		},
	}
	file := filepath.Join(dir, "image.tar")
	if err := Write(file, spec); err != nil {
		t.Fatal(err)
	}

	u := unpack(t, file)
	if u.name != "index.docker.io/library/flock:dev" {
		t.Errorf("name %q: want that of docker.io/library/flock:dev, where the kubelet looks", u.name)
	}
	c := u.config
	got, _ := json.Marshal([]any{c.Entrypoint, c.Cmd, c.Env, c.User, u.os})
	if want := `[["/bin/run"],["--now"],["A=b"],"1:2","linux"]`; string(got) != want {
		t.Errorf("config: %s, want %s", got, want)
	}
	var listing strings.Builder
	for _, h := range u.layer {
		listing.WriteString(strings.Join([]string{
			string(h.Typeflag), h.Name, fs.FileMode(h.Mode).String(), h.Linkname, string(u.files[h.Name]),
		}, " ") + "\n")
		if h.Name == "etc/own" && (h.Uid != 3 || h.Gid != 4) || h.Name == "etc/" && h.Gid != 5 {
			t.Errorf("%s: owned by %d:%d", h.Name, h.Uid, h.Gid)
		}
	}
	want := `5 bin/ -rwxr-xr-x  
0 bin/run -rwxr-xr-x  from a file
5 etc/ -rwx------  
0 etc/own -rw-r-----  own
5 z/ -rwxr-xr-x  
2 z/link -rwxrwxrwx ../bin/run 
`
	if listing.String() != want {
		t.Errorf("layer:\n%swant:\n%s", &listing, want)
	}

	t.Run("reproducible", func(t *testing.T) {
		first, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(source, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		spec.Entries[0], spec.Entries[2] = spec.Entries[2], spec.Entries[0]
		if err := Write(file, spec); err != nil {
			t.Fatal(err)
		}
		if again := must(os.ReadFile(file)); !bytes.Equal(first, again) {
			t.Error("the same files in another order and with another time make another image")
		}
		if left := must(os.ReadDir(dir)); len(left) != 2 {
			t.Errorf("left behind: %v", left)
		}
	})
}

func TestWriteRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		spec Spec
		want string
	}{
		{"reference", Spec{Ref: "Flock dev"}, `image reference "Flock dev"`},
		{"relative path", Spec{Ref: "a:b", Entries: []Entry{{Path: "bin/a"}}}, `path "bin/a": must be absolute`},
		{"unclean path", Spec{Ref: "a:b", Entries: []Entry{{Path: "/bin/../a"}}}, `path "/bin/../a": must be absolute`},
		{"same path twice", Spec{Ref: "a:b", Entries: []Entry{{Path: "/a"}, {Path: "/a"}}}, "path /a: is in the image twice"},
		{"file above file", Spec{Ref: "a:b", Entries: []Entry{{Path: "/a"}, {Path: "/a/b"}}}, "path /a/b: lies below /a"},
		{"no source", Spec{Ref: "a:b", Entries: []Entry{File("/a", "/nonexistent")}}, "path /a: open /nonexistent"},
		{"directory as source", Spec{Ref: "a:b", Entries: []Entry{File("/a", "/")}}, "path /a: source /: is not a regular file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			err := Write(filepath.Join(dir, "image.tar"), tc.spec)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v: want %q in it", err, tc.want)
			}
			if left := must(os.ReadDir(dir)); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestDynamicRefuses(t *testing.T) {
	static := filepath.Join(t.TempDir(), "pause")
	build := exec.Command("go", "build", "-o", static, "./pause")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := Dynamic("/", static); err == nil || !strings.Contains(err.Error(), "linked statically") {
		t.Errorf("static program: error %v", err)
	}
	if _, err := Dynamic("/", "/nonexistent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing program: error %v", err)
	}
	if _, err := findLibrary("/", []string{"/usr/lib"}, "libnone.so.1", 0); err == nil || !strings.Contains(err.Error(), "not found in /usr/lib") {
		t.Errorf("missing library: error %v", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
