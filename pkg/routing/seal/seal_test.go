package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/config"
)

func newKey(t testing.TB) Key {
	t.Helper()
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func public(t testing.TB, k Key) Public {
	t.Helper()
	p, err := ParsePublic(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func use(node, name, key string) Use { return Use{node, config.SecretRef{Name: name, Key: key}} }

// A password opens with the key and for the use that it was sealed for, and for no other.
func TestBinding(t *testing.T) {
	t.Parallel()
	k, other := newKey(t), newKey(t)
	of := use("node1", "tor", "password")
	sealed, err := public(t, k).Seal(of, []byte("correct-horse"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Open(of, sealed); err != nil || string(got) != "correct-horse" {
		t.Errorf("%q, %v", got, err)
	}
	flipped := func(i int) string {
		b, _ := base64.StdEncoding.DecodeString(sealed)
		b[i] ^= 1
		return base64.StdEncoding.EncodeToString(b)
	}
	for name, c := range map[string]struct {
		key    Key
		use    Use
		sealed string
	}{
		"another node's key":          {other, of, sealed},
		"another node":                {k, use("node2", "tor", "password"), sealed},
		"another Secret":              {k, use("node1", "leaf", "password"), sealed},
		"another key of it":           {k, use("node1", "tor", "old"), sealed},
		"the same letters, cut anew":  {k, use("node1", "torp", "assword"), sealed},
		"the node's name in the name": {k, use("node", "1tor", "password"), sealed},
		"no use":                      {k, Use{}, sealed},
		"a changed first byte":        {k, of, flipped(0)},
		"a changed last byte":         {k, of, flipped(120)},
		"nothing":                     {k, of, ""},
		"the encapsulated key alone":  {k, of, sealed[:40]},
		"no base64":                   {k, of, "ä" + sealed},
		"more behind it":              {k, of, sealed + "AAAA"},
	} {
		if got, err := c.key.Open(c.use, c.sealed); err == nil {
			t.Errorf("%s: it opens to %q", name, got)
		} else if strings.Contains(err.Error(), "horse") {
			t.Errorf("%s: the error holds the password: %v", name, err)
		}
	}
}

// A ciphertext tells neither the password's length nor whether two passwords are the same.
func TestCiphertext(t *testing.T) {
	t.Parallel()
	p := public(t, newKey(t))
	seen := map[string]bool{}
	var length int
	for _, password := range []string{"", "a", "a", strings.Repeat("a", Most)} {
		sealed, err := p.Seal(use("node1", "tor", "password"), []byte(password))
		if err != nil {
			t.Fatal(err)
		}
		if length == 0 {
			length = len(sealed)
		}
		if seen[sealed] || len(sealed) != length {
			t.Errorf("%d bytes after %d, seen before: %t", len(sealed), length, seen[sealed])
		}
		seen[sealed] = true
	}
	if _, err := p.Seal(Use{}, make([]byte, Most+1)); err == nil {
		t.Error("a password that is too long is sealed")
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	k := newKey(t)
	b, err := k.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseKey(b)
	if err != nil || again.Public() != k.Public() {
		t.Errorf("%v: the key is another one after it was kept", err)
	}
	for _, bad := range [][]byte{nil, b[:31], append(bytes.Clone(b), 0)} {
		if _, err := ParseKey(bad); err == nil {
			t.Errorf("%d bytes are a private key", len(bad))
		}
	}
	for _, bad := range []string{"", "x", k.Public()[:43], k.Public() + "A", "\n" + k.Public()} {
		if _, err := ParsePublic(bad); err == nil {
			t.Errorf("%q is a public key", bad)
		}
	}
	// A point of low order would make a secret that everybody knows (RFC 7748 section 6.1).
	zero, err := ParsePublic(base64.StdEncoding.EncodeToString(make([]byte, 32)))
	if err == nil {
		_, err = zero.Seal(use("node1", "tor", "password"), []byte("a"))
	}
	if err == nil {
		t.Error("a password is sealed for a key of low order")
	}
	text, _ := json.Marshal(map[string]Key{"k": k})
	for _, printed := range []string{fmt.Sprint(k), fmt.Sprintf("%#v %x %+v", k, k, struct{ K Key }{k}), string(text)} {
		if !strings.Contains(printed, "(private key)") || strings.Contains(printed, fmt.Sprintf("%x", b)) {
			t.Errorf("a key prints as %s", printed)
		}
	}
}

// FuzzBinding: what is sealed opens for the same use, and for any other it does not.
func FuzzBinding(f *testing.F) {
	f.Add("node1", "tor", "password", "node1", "torp", "assword", []byte("secret"))
	f.Add("", "", "", "", "", "\x00", []byte{})
	f.Add("a", "b", "c", "a\x00\x00\x00\x01b", "", "c", bytes.Repeat([]byte{255}, Most))
	k := newKey(f)
	p := public(f, k)
	f.Fuzz(func(t *testing.T, node, name, key, node2, name2, key2 string, password []byte) {
		a, b := use(node, name, key), use(node2, name2, key2)
		sealed, err := p.Seal(a, password)
		if len(password) > Most {
			if err == nil {
				t.Fatal("a password that is too long is sealed")
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := k.Open(a, sealed); err != nil || !bytes.Equal(got, password) {
			t.Fatalf("%q, %v; sealed was %q", got, err, password)
		}
		if _, err := k.Open(b, sealed); (err == nil) != (a == b) {
			t.Fatalf("sealed for %q, opened for %q: %v", a, b, err)
		}
	})
}

// FuzzOpen: whatever somebody writes into the status, Open answers.
func FuzzOpen(f *testing.F) {
	k := newKey(f)
	sealed, err := public(f, k).Seal(use("node1", "tor", "password"), []byte("secret"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add("")
	f.Add(base64.StdEncoding.EncodeToString(make([]byte, 129)))
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := k.Open(use("node1", "tor", "password"), text); err == nil && (text != sealed || string(got) != "secret") {
			t.Errorf("%q opens to %q", text, got)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	p := public(b, newKey(b))
	for b.Loop() {
		if _, err := p.Seal(use("node1", "tor", "password"), []byte("correct-horse")); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	k := newKey(b)
	sealed, err := public(b, k).Seal(use("node1", "tor", "password"), []byte("correct-horse"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := k.Open(use("node1", "tor", "password"), sealed); err != nil {
			b.Fatal(err)
		}
	}
}
