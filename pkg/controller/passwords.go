package controller

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/seal"
)

// passwords gives each node the passwords that it shares with its routers, encrypted for it
// alone, in the status of its NodeConfig.
type passwords struct {
	world     *world
	api       *kube.Client
	namespace string
	log       *slog.Logger
	metrics   *metrics

	secrets     *kube.Cache[*corev1.Secret]
	secretsSeen atomic.Int64 // counts their changes

	mu   sync.Mutex                // guards done
	done map[string]passwordsState // NodeConfigs by name
}

// passwordsState is all that the passwords of a node are made of. A node for which it has not
// changed is passed over.
type passwordsState struct {
	config             *v1alpha1.NodeConfig
	node               *corev1.Node
	secrets, templates int64
}

const (
	passwordsPause   = 10 * time.Millisecond // between two passes
	passwordsWriters = 16                    // at a time
)

// Run works until ctx ends. It follows the Secrets itself: only this needs them.
func (p *passwords) Run(ctx context.Context) {
	p.done = map[string]passwordsState{}
	changed := cell.Signal()
	p.secrets = p.api.Secrets(p.namespace, func() { p.secretsSeen.Add(1); cell.Wake(changed) })
	p.world.has.Notify(changed)
	retry := backoff.Backoff{First: 200 * time.Millisecond, Last: 30 * time.Second, Jitter: 0.2}
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { p.secrets.Run(ctx) })
	follow(ctx, changed, passwordsPause, func() time.Duration {
		if !p.secrets.Synced() {
			return -1
		}
		err := p.pass(ctx)
		if err == nil || ctx.Err() != nil {
			retry.Reset()
			return -1
		}
		delay := retry.Next()
		p.log.Warn("cannot give a node its passwords, will retry", "error", err, "retry", delay)
		return delay
	})
}

// pass brings all NodeConfigs to what they should have. The error is that of one of them.
func (p *passwords) pass(ctx context.Context) (failed error) {
	var writers sync.WaitGroup
	turn := make(chan struct{}, passwordsWriters)
	there := map[string]bool{}
	fail := func(nc *v1alpha1.NodeConfig, err error) {
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // it is another object by now
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		failed = fmt.Errorf("NodeConfig %s: %w", nc.Name, err)
	}
	for _, nc := range p.world.configs.List() {
		there[nc.Name] = true
		now := passwordsState{config: nc, secrets: p.secretsSeen.Load(), templates: p.world.templatesSeen.Load()}
		now.node, _ = p.world.nodes.Get(nc.Name)
		p.mu.Lock()
		done := p.done[nc.Name] == now
		p.mu.Unlock()
		if done {
			continue
		}
		want, sealed, err := passwordsFor(nc, now.node, p.world.templates.List(), p.password)
		if err != nil {
			fail(nc, err)
			continue
		}
		write := func() {
			if !reflect.DeepEqual(want, nc.Status.Passwords) {
				if err := p.api.PatchPasswords(ctx, nc, want); err != nil {
					fail(nc, err)
					return
				}
				p.metrics.sealed.Add(float64(sealed))
				p.log.Info("gave a node its passwords", "node", nc.Name, "encrypted", sealed)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.done[nc.Name] = now
		}
		turn <- struct{}{}
		writers.Go(func() { write(); <-turn })
	}
	writers.Wait()
	maps.DeleteFunc(p.done, func(name string, _ passwordsState) bool { return !there[name] })
	return failed
}

// mayHave says which passwords a NodeConfig may have: refs are encrypted anew when something
// changes, kept only when the node has another key.
//
// A node's agent may write the spec of a NodeConfig that is made from a template, so such a
// spec says nothing: what the template makes of the Node counts. That is computed here as the
// agent does it. Where the agent has not followed yet, the passwords in use stay beside the
// new ones. Where no template applies any more, the spec stands as the agent has found it
// last; of the passwords to which it refers, the node may have those that it has already.
func mayHave(nc *v1alpha1.NodeConfig, node *corev1.Node, templates []*v1alpha1.NodeConfigTemplate) (refs, kept []config.SecretRef) {
	inSpec, valid := references(nc)
	if !fleet.Templated(nc) {
		if !valid { // the node goes on with what it has
			return alreadyFor(nc), nil
		}
		return inSpec, nil
	}
	has := slices.DeleteFunc(inSpec, func(ref config.SecretRef) bool { return sealedFor(nc, ref) == nil })
	if node == nil {
		return has, nil
	}
	decision := fleet.Decide(fleet.NodeOf(node), nc, templates)
	switch {
	case decision.Reason != fleet.FromTemplate:
		return has, nil
	case decision.Action == fleet.Leave:
		refs, _ = references(nc)
		return refs, nil
	}
	refs, _ = references(decision.Object)
	return refs, slices.DeleteFunc(has, func(ref config.SecretRef) bool { return slices.Contains(refs, ref) })
}

// references are the passwords that a spec refers to, if it is valid.
func references(nc *v1alpha1.NodeConfig) (refs []config.SecretRef, valid bool) {
	node, err := config.ParseNode(nc)
	if err != nil {
		return nil, false
	}
	return routing.IntentOf(node).Secrets(), true
}

// alreadyFor are the passwords that the node has, or of which it knows that there is none.
func alreadyFor(nc *v1alpha1.NodeConfig) (refs []config.SecretRef) {
	if nc.Status.Passwords != nil {
		for _, s := range nc.Status.Passwords.Items {
			refs = append(refs, config.SecretRef{Name: s.Secret, Key: s.Key})
		}
	}
	return refs
}

func sealedFor(nc *v1alpha1.NodeConfig, ref config.SecretRef) *v1alpha1.SealedPassword {
	if nc.Status.Passwords == nil {
		return nil
	}
	for i, s := range nc.Status.Passwords.Items {
		if s.Secret == ref.Name && s.Key == ref.Key {
			return &nc.Status.Passwords.Items[i]
		}
	}
	return nil
}

// passwordsFor is what the NodeConfig should have, and how much of it is encrypted anew.
// secret says what a Secret has, see passwords.password.
func passwordsFor(nc *v1alpha1.NodeConfig, node *corev1.Node, templates []*v1alpha1.NodeConfigTemplate, secret func(config.SecretRef) (password routing.Password, version, message string)) (want *v1alpha1.SealedPasswords, sealed int, err error) {
	key := nc.Status.PasswordKey
	refs, kept := mayHave(nc, node, templates)
	if key == "" || len(refs)+len(kept) == 0 {
		return nil, 0, nil
	}
	recipient, err := seal.ParsePublic(key)
	if err != nil {
		return nil, 0, fmt.Errorf("status.passwordKey: %w", err)
	}
	same := nc.Status.Passwords != nil && nc.Status.Passwords.Recipient == key
	want = &v1alpha1.SealedPasswords{Recipient: key, Items: []v1alpha1.SealedPassword{}}
	for _, ref := range refs {
		item := v1alpha1.SealedPassword{Secret: ref.Name, Key: ref.Key}
		var password routing.Password
		password, item.Version, item.Message = secret(ref)
		switch has := sealedFor(nc, ref); {
		case item.Message != "":
		case same && has != nil && has.Message == "" && has.Version == item.Version:
			item.Ciphertext = has.Ciphertext
		default:
			if item.Ciphertext, err = recipient.Seal(seal.Use{Node: nc.Name, Secret: ref}, []byte(password.Reveal())); err != nil {
				return nil, 0, err
			}
			sealed++
		}
		want.Items = append(want.Items, item)
	}
	for _, ref := range kept {
		item := *sealedFor(nc, ref)
		if !same {
			// The node has booted while it waits for its turn. What it had it may have again, and
			// no newer one: a node that does not follow its template is not to learn those.
			password, version, message := secret(ref)
			if message != "" || version != item.Version {
				continue
			}
			if item.Ciphertext, err = recipient.Seal(seal.Use{Node: nc.Name, Secret: ref}, []byte(password.Reveal())); err != nil {
				return nil, 0, err
			}
			sealed++
		}
		want.Items = append(want.Items, item)
	}
	return want, sealed, nil
}

// password is what a Secret has now, with the version of it, or why there is no password.
func (p *passwords) password(ref config.SecretRef) (password routing.Password, version, message string) {
	secret, ok := p.secrets.Get(p.namespace + "/" + ref.Name)
	if !ok {
		return password, "", "there is no such Secret"
	}
	value, ok := secret.Data[ref.Key]
	if !ok {
		return password, "", "the Secret has no such key"
	}
	password, err := routing.ParsePassword(value)
	if err != nil {
		return password, "", err.Error()
	}
	return password, fmt.Sprintf("%s/%s", secret.UID, secret.ResourceVersion), ""
}
