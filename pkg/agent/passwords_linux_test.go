package agent_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing/seal"
)

var passwordNodeConfig = strings.Replace(routedNodeConfig, `"remoteAS":64512`, `"remoteAS":64512,"passwordSecretRef":{"name":"tor","key":"md5"}`, 1)

// passwords puts what flock-controller writes into the status, sealed for node and the key
// that the agent has published.
func (s *apiServer) passwords(node string, items ...v1alpha1.SealedPassword) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	object := s.object.DeepCopy()
	recipient := object.Status.PasswordKey
	public, err := seal.ParsePublic(recipient)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := range items {
		if p := &items[i]; p.Ciphertext != "" {
			if p.Ciphertext, err = public.Seal(seal.Use{Node: node, Secret: config.SecretRef{Name: p.Secret, Key: p.Key}}, []byte(p.Ciphertext)); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	object.Status.Passwords = &v1alpha1.SealedPasswords{Recipient: recipient, Items: items}
	s.change(object)
}

func md5(password string) v1alpha1.SealedPassword {
	return v1alpha1.SealedPassword{Secret: "tor", Key: "md5", Ciphertext: password}
}

// publishes waits until the agent has published a key, another than before.
func (s *apiServer) publishes(n *node, before string) (key string) {
	s.t.Helper()
	eventually(s.t, n.agentLog, func() error {
		if key = s.status().PasswordKey; key == "" || key == before {
			return fmt.Errorf("the agent's key is %q", key)
		}
		return nil
	})
	return key
}

func (n *node) birdConf() string {
	b, _ := os.ReadFile(filepath.Join(n.state, "bird", "bird.conf"))
	return string(b)
}

// takes waits until BIRD's configuration has the password; "" is none.
func (n *node) takes(password string) {
	n.t.Helper()
	eventually(n.t, n.agentLog, func() error {
		conf := n.birdConf()
		if password == "" && (strings.Contains(conf, "password \"") || !strings.Contains(conf, "password is not known")) {
			return errors.New("BIRD's configuration has a password, or does not say that one is missing")
		}
		if password != "" && !strings.Contains(conf, fmt.Sprintf("password %q;", password)) {
			return fmt.Errorf("BIRD's configuration does not have password %s", password)
		}
		return nil
	})
}

// TestPasswords: what flock-controller has encrypted for the node reaches BIRD, and what it
// says of the others reaches the condition.
func TestPasswords(t *testing.T) {
	t.Parallel()
	n := newNode(t, passwordNodeConfig)
	api := n.serveAPI()
	api.put("a", 3, passwordNodeConfig)
	n.start()
	api.says(n, "RoutingConfigured", metav1.ConditionFalse, "secret flock-system/tor, key md5: flock-controller has not encrypted it for this node yet")
	api.accepted(n, 3, metav1.ConditionTrue, "") // no fault of the NodeConfig
	n.takes("")                                  // BIRD did not run before: other sessions do not wait
	n.startBIRD()
	api.publishes(n, "")

	api.passwords("node1", v1alpha1.SealedPassword{Secret: "tor", Key: "md5", Message: "the Secret has no such key"})
	api.says(n, "RoutingConfigured", metav1.ConditionFalse, "secret flock-system/tor, key md5: the Secret has no such key; the sessions that need it stay down")
	var took []time.Duration
	for i := range 10 {
		began := time.Now()
		api.passwords("node1", md5(fmt.Sprint("horse", i)))
		n.takes(fmt.Sprint("horse", i))
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("a password is in BIRD's configuration %s (median) after it is in the status, %s at most", took[5].Round(time.Millisecond), took[9].Round(time.Millisecond))
	api.says(n, "RoutingConfigured", metav1.ConditionTrue, "")

	// What another node's is, or of another Secret, is nothing to this one.
	api.passwords("node2", md5("of-another"))
	eventually(t, n.agentLog, func() error {
		if !strings.Contains(n.agentLog(), "cannot decrypt a password") {
			return errors.New("the agent has not seen it")
		}
		return nil
	})
	n.takes("horse9")
	api.passwords("node1", v1alpha1.SealedPassword{Secret: "tor", Key: "md5", Message: "there is no such Secret"})
	n.takes("")

	// A status that is lost says nothing of a password.
	api.passwords("node1", md5("battery"))
	n.takes("battery")
	api.mu.Lock()
	lost := api.object.DeepCopy()
	lost.Status = v1alpha1.NodeConfigStatus{}
	api.change(lost)
	api.mu.Unlock()
	api.publishes(n, "")
	n.takes("battery")
	if strings.Contains(n.agentLog(), "horse") || strings.Contains(n.agentLog(), "battery") {
		t.Error("the log has a password")
	}
}

// TestPasswordsOverRestarts: an agent has its passwords again without the API server. With
// another key it leaves BIRD alone until it has them.
func TestPasswordsOverRestarts(t *testing.T) {
	t.Parallel()
	config := strings.Replace(passwordNodeConfig, `"spec":{`, `"spec":{"startup":{"sessions":"none"},`, 1)
	n := newNode(t, config)
	api := n.serveAPI()
	api.put("a", 3, config)
	n.start()
	key := api.publishes(n, "")
	api.passwords("node1", md5("horse"))
	n.takes("horse")
	n.startBIRD()
	api.says(n, "RoutingConfigured", metav1.ConditionTrue, "")
	file := filepath.Join(n.state, "password-key")
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v: want a file for root alone", info.Mode(), err)
	}
	api.passwords("node1", md5("battery")) // of the same generation
	n.takes("battery")
	eventually(t, n.agentLog, func() error {
		kept, err := os.ReadFile(filepath.Join(n.state, "nodeconfig.json"))
		if sealed := api.status().Passwords.Items[0].Ciphertext; err != nil || !strings.Contains(string(kept), sealed) {
			return fmt.Errorf("the copy of the NodeConfig does not have the new password: %v", err)
		}
		return nil
	})

	// Without the API server: a change of the links is rendered with the password.
	n.kill()
	api.away.Store(true)
	n.start()
	n.host.IP("addr", "add", "203.0.113.5/24", "dev", "uplink")
	eventually(t, n.agentLog, func() error {
		if !strings.Contains(n.birdConf(), "203.0.113.0/24") {
			return errors.New("BIRD's configuration does not refuse the link's new subnet")
		}
		return nil
	})
	n.takes("battery")

	// The key is damaged.
	n.kill()
	if err := os.WriteFile(file, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := n.birdConf()
	api.away.Store(false)
	n.start()
	if again := api.publishes(n, key); again == key {
		t.Error("the same key")
	}
	api.says(n, "RoutingConfigured", metav1.ConditionFalse, "BIRD keeps the configuration that it has until all passwords are there: secret flock-system/tor, key md5: flock-controller has not encrypted it")
	if code, body := n.readyz(); code == 200 || !strings.Contains(body, "flock-controller") {
		t.Errorf("/readyz is %d %s: a roll-out would go on", code, body)
	}
	if n.birdConf() != before {
		t.Errorf("BIRD has lost its password:\n%s", n.birdConf())
	}
	api.passwords("node1", md5("staple"))
	n.takes("staple")
	api.says(n, "RoutingConfigured", metav1.ConditionTrue, "")
	private, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	status := fmt.Sprintf("%+v", api.status())
	for _, text := range []string{n.agentLog(), status} {
		if strings.Contains(text, string(private)) || strings.Contains(text, base64.StdEncoding.EncodeToString(private)) || strings.Contains(text, "staple") {
			t.Error("the private key or the password is in the log or the status")
		}
	}
}
