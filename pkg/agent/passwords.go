//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"reflect"

	"flock.fritzlab.net/flock/internal/atomicfile"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/seal"
)

// passwords decrypts the passwords that flock-controller has encrypted for the node, with a
// key that never leaves it. The ciphertexts are in the status of the NodeConfig, also in the
// copy that the node keeps, so an agent that starts without the API server has them too.
type passwords struct {
	node    string
	path    string // of the private key
	configs cell.Reader[observed]
	log     *slog.Logger

	cell.Cell[opened]
	key  seal.Key
	last *v1alpha1.SealedPasswords // what was taken in
}

// opened has what is known of passwords. Nothing is known of one that is not in it.
type opened map[config.SecretRef]openedPassword

type openedPassword struct {
	password routing.Password
	err      error // why there is none
	waits    bool  // it is not known whether there is one
}

// Open implements Opener. Without a private key, as after each boot, or with one that is damaged,
// it makes one. One that cannot be read may be good: routers' sessions would wait until
// flock-controller has encrypted all passwords for another.
func (p *passwords) Open() error {
	kept, err := atomicfile.Read(p.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = p.makeKey()
	case err != nil:
		return fmt.Errorf("cannot read the private key for the passwords shared with routers: %w; if that stays, remove the file", err)
	default:
		if p.key, err = seal.ParseKey(kept); err != nil {
			p.log.Warn("the private key for the passwords shared with routers is damaged, making another", "file", p.path, "error", err)
			err = p.makeKey()
		}
	}
	if err != nil {
		return err
	}
	p.open(p.configs.Get().object)
	return nil
}

func (p *passwords) makeKey() (err error) {
	if p.key, err = seal.NewKey(); err != nil {
		return err
	}
	private, err := p.key.Bytes()
	if err != nil {
		return err
	}
	if err := atomicfile.Write(p.path, private); err != nil {
		p.log.Warn("cannot keep the private key for the passwords shared with routers; the agent's next start makes another", "file", p.path, "error", err)
	}
	return nil
}

// Run follows the NodeConfig.
func (p *passwords) Run(ctx context.Context) error {
	changed := cell.Signal()
	p.configs.Notify(changed)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			p.open(p.configs.Get().object)
		}
	}
}

// open takes in the passwords of nc. What was opened before stays until something else is
// known of it: absent from the status, where it was not written yet or was lost, says nothing.
func (p *passwords) open(nc *v1alpha1.NodeConfig) {
	if nc == nil || nc.Status.Passwords == nil || reflect.DeepEqual(nc.Status.Passwords, p.last) {
		return
	}
	sealed := nc.Status.Passwords
	p.last = sealed
	if sealed.Recipient != p.key.Public() {
		return // flock-controller is about to encrypt them for this key
	}
	now := maps.Clone(p.Get())
	if now == nil {
		now = opened{}
	}
	for _, s := range sealed.Items {
		ref := config.SecretRef{Name: s.Secret, Key: s.Key}
		if s.Message != "" {
			now[ref] = openedPassword{err: errors.New(s.Message)}
			continue
		}
		password, err := p.decrypt(ref, s.Ciphertext)
		if err == nil {
			now[ref] = openedPassword{password: password}
			continue
		}
		p.log.Warn("cannot decrypt a password shared with routers", "secret", ref.Name, "key", ref.Key, "error", err)
		if before, ok := now[ref]; !ok || before.err != nil {
			now[ref] = openedPassword{err: fmt.Errorf("what flock-controller has encrypted cannot be decrypted: %w", err), waits: true}
		}
	}
	p.Set(now)
}

func (p *passwords) decrypt(ref config.SecretRef, ciphertext string) (routing.Password, error) {
	value, err := p.key.Open(seal.Use{Node: p.node, Secret: ref}, ciphertext)
	if err != nil {
		return routing.Password{}, err
	}
	return routing.ParsePassword(value)
}

// Report implements Reporter.
func (p *passwords) Report(_ context.Context, status *v1alpha1.NodeConfigStatus) {
	status.PasswordKey = p.key.Public()
}
