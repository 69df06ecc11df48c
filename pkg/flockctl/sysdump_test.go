package flockctl

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// planted are secrets, in each form in which one may stand in what is dumped.
var planted = map[string]string{
	"a JSON web token":     "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJl-ZZZ1",
	"a bearer token":       "Bearer ZZZ2abcdefgh",
	"an Authorization":     "Authorization: Basic ZZZ3dXNlcjpwYXNz",
	"BIRD's password":      `password "ZZZ4 with spaces"; # peer tor`,
	"a setting":            "password=ZZZ5",
	"a setting in JSON":    `{"password": "ZZZ6", "user": "x"}`,
	"a setting in YAML":    "bgp_secret: ZZZ7",
	"a key with a prefix":  "DB_API_KEY=ZZZ8",
	"a URL's password":     "https://user:ZZZ9@host.example/path",
	"a private key":        "-----BEGIN EC PRIVATE KEY-----\nZZZ10\nZZZ10more\n-----END EC PRIVATE KEY-----",
	"a key that is cut":    "-----BEGIN PRIVATE KEY-----\nZZZ11",
	"a log line of slog":   `level=INFO msg="read secret" token=ZZZ12 peer=tor`,
	"a quoted log value":   `level=INFO msg=x password="ZZZ13 and more" peer=tor`,
	"single quotes":        "apiKey: 'ZZZ14 x'",
	"a passphrase":         "passphrase=ZZZ15",
	"a mixed case setting": "Passwd: ZZZ16",
	"a short one":          "password: Z&ZZZ;ZZZ,ZZZ",
	"a list":               `tokens: ["ZZZ1", "ZZZ2"]`,
	"JSON in a string":     `msg="bad {\"password\":\"ZZZ\",\"user\":\"x\"}"`,
	"a flag and its value": "--token ZZZ",
	"a list of arguments":  `["server","--token","ZZZ"]`,
	"a bare Authorization": "Authorization: ZZZ",
	"a digest":             "Authorization: Digest username=x, response=ZZZ",
	"an encoded header":    "Authorization=Basic%20ZZZ3dXNlcjpwYXNz",
	"a header with a key":  "X-Api-Key: ZZZ",
	"cookies":              "Cookie: a=b; session=ZZZ",
	"a token in a URL":     "https://ZZZ@host.example/path",
	"no user in a URL":     "https://:ZZZ@host.example/path",
	"a key in a URL":       "https://host.example/v1?a=b&key=ZZZ",
	"a PGP key":            "-----BEGIN PGP PRIVATE KEY BLOCK-----\nZZZ\n-----END PGP PRIVATE KEY BLOCK-----",
	"a short word":         "MYPASS=ZZZ",
}

// TestSecretFields: fields and annotations by their names, whatever their values look like.
func TestSecretFields(t *testing.T) {
	for _, object := range []string{
		`{"metadata":{"annotations":{"example.com/note":"ZZZ"}}}`,
		`{"metadata":{"annotations":{"flock.fritzlab.net/password":"ZZZ"}}}`,
		`{"metadata":{"labels":{"example.com/token":"ZZZ"}}}`,
		`{"clientSecret":"ZZZ","bgpPassword":"ZZZ","secretAccessKey":"ZZZ","md5-key":"ZZZ"}`,
		`{"password":{"value":"ZZZ"},"passwords":["ZZZ"],"tokens":{"a":"ZZZ","b":["ZZZ"]}}`,
		`{"args":["run","--token","ZZZ","--header","X-Api-Key: ZZZ"]}`,
		`{"token":2220222}`,
	} {
		text, err := withoutSecrets([]byte(object))
		if err != nil || strings.Contains(string(text), "ZZZ") || strings.Contains(string(text), "222") {
			t.Errorf("%s: %v\n%s", object, err, text)
		}
	}
	for object, want := range map[string]string{
		`{"metadata":{"annotations":{"flock.fritzlab.net/anycast":"2001:db8::1","a.kubernetes.io/b":"c"}}}`: "a.kubernetes.io/b: c\n    flock.fritzlab.net/anycast: 2001:db8::1",
		`{"imagePullSecrets":[{"name":"registry"}]}`:                                                        "- name: registry",
		`{"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}}`:                                 "expirationSeconds: 3607\n  path: token",
		`{"passwordSecretRef":{"name":"bgp","key":"tor"},"passwordKey":"public"}`:                           "passwordKey: public\npasswordSecretRef:\n  key: tor\n  name: bgp",
		`{"automountServiceAccountToken":false,"args":["--metrics-address=:9480","x"]}`:                     "- --metrics-address=:9480\n- x\nautomountServiceAccountToken: false",
	} {
		if text, err := withoutSecrets([]byte(object)); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v, want %q in\n%s", object, err, want, text)
		}
	}
}

// TestSysdumpOfNothing: who may read nothing is told so.
func TestSysdumpOfNothing(t *testing.T) {
	c := connectTo(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","message":"not for you","code":403}`)
	})
	if _, err := execute(c, "sysdump -f "+filepath.Join(t.TempDir(), "dump.tar.gz")); err == nil || !strings.Contains(err.Error(), "nothing could be read") {
		t.Errorf("an archive of nothing: %v", err)
	}
}

func TestSecretsAreRemoved(t *testing.T) {
	for name, text := range planted {
		got := withoutSecretText("before " + text + " after")
		if strings.Contains(got, "ZZZ") {
			t.Errorf("%s is left: %s", name, got)
		}
		if !strings.HasPrefix(got, "before ") || !strings.Contains(got, removed) {
			t.Errorf("%s: %s", name, got)
		}
	}
	for _, text := range []string{
		`level=INFO msg="pod attached" pod=shop/web-0 container=0123 hostIf=flock01234567 addresses="[2001:db8::7]"`,
		"bgp tor: Active, Connection refused; the Secret bgp has no key tor",
		"passwordSecretRef: {name: bgp, key: tor}",
	} {
		if got := withoutSecretText(text); got != text {
			t.Errorf("nothing is secret in %q: %q", text, got)
		}
	}
}

// TestSysdump plants secrets everywhere in what a cluster answers, and finds none in the
// archive, while what helps is there.
func TestSysdump(t *testing.T) {
	var everything []string
	for _, text := range planted {
		everything = append(everything, text)
	}
	logs := strings.Join(everything, "\n")
	quoted := strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(logs, `\`, `\\`), `"`, `\"`), "\n", `\n`)
	c := connectTo(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "secrets") {
			t.Errorf("it asks for %s", r.URL)
		}
		switch {
		case strings.HasSuffix(r.URL.Path, "/log"):
			if r.URL.Query().Get("previous") == "true" {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			fmt.Fprintln(w, "the agent has started")
			fmt.Fprint(w, logs)
		case strings.HasSuffix(r.URL.Path, "/addressclaims"):
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","message":"no claims for you","code":403}`)
		case strings.HasSuffix(r.URL.Path, "/pods"):
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"kind":"PodList","apiVersion":"v1","items":[{"metadata":{"name":"flock-a","namespace":"flock-system","labels":{"app.kubernetes.io/name":"flock"},
				"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"%s","note":"%s"},"managedFields":[{"manager":"ZZZ"}]},
				"spec":{"nodeName":"node1","containers":[{"name":"agent","image":"flock:v1","env":[{"name":"HARMLESS","value":"ZZZ20"},{"name":"NODE_NAME"}]}]}}]}`, quoted, quoted)
		case strings.HasSuffix(r.URL.Path, "/nodeconfigs"):
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"kind":"NodeConfigList","apiVersion":"flock.fritzlab.net/v1alpha1","items":[{"metadata":{"name":"node1"},
				"spec":{"podCIDRs":{"ipv6":["2001:db8:1::/64"]}},"status":{"conditions":[{"type":"Ready","status":"False","reason":"x","message":"%s"}]}}]}`, quoted)
		default:
			w.Header().Set("Content-Type", "application/json")
			kind, version := kinds[filepath.Base(r.URL.Path)], "v1"
			if strings.HasPrefix(r.URL.Path, "/apis/flock.") {
				version = "flock.fritzlab.net/v1alpha1"
			}
			fmt.Fprintf(w, `{"kind":"`+kind+`List","apiVersion":"`+version+`","items":[{"metadata":{"name":"x"},"password":"ZZZ21","data":{"token":"ZZZ22"},"message":"%s"}]}`, quoted)
		}
	})
	file := filepath.Join(t.TempDir(), "dump.tar.gz")
	out, err := execute(c, "sysdump -f "+file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, file) || !strings.Contains(out, "read it before you send it") {
		t.Errorf("it says %q", out)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	gz, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(text)
		if i := strings.Index(string(text), "ZZZ"); i >= 0 {
			t.Errorf("%s has a secret: %.80s", h.Name, text[max(0, i-40):])
		}
	}
	for name, want := range map[string]string{
		"objects/nodeconfigs.yaml":     "2001:db8:1::/64",
		"objects/pods.yaml":            "flock:v1",
		"objects/nodes.yaml":           "name: x",
		"logs/node1/flock-a-agent.log": "the agent has started",
		"status.txt":                   "serve pods",
		"nodes.txt":                    "node1",
		"errors.txt":                   "no claims for you",
	} {
		if !strings.Contains(files["flock-sysdump/"+name], want) {
			t.Errorf("%s does not have %q: %.300s", name, want, files["flock-sysdump/"+name])
		}
	}
}
