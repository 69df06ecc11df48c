// Package seal encrypts passwords for one node, and decrypts them there.
//
// It is HPKE (RFC 9180) in mode Base with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and
// ChaCha20Poly1305. What a password is for is bound to its ciphertext, see Use: it opens for
// no other use. Who sealed it is not: anybody can who has the public key, so it must come
// from where only flock-controller can write.
//
// The package is pure but for the random numbers, and prints no password and no private key.
package seal

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"

	"flock.fritzlab.net/flock/pkg/config"
)

// Most is how many bytes a password may have. TCP MD5 takes 80 (TCP_MD5SIG_MAXKEYLEN), OSPF
// 64. Each is filled up to this length, so that a ciphertext does not tell it.
const Most = 80

// Use is what a password is sealed for.
type Use struct {
	Node   string
	Secret config.SecretRef
}

// info is unlike that of every other Use.
func (u Use) info() []byte {
	b := []byte("flock.fritzlab.net password v1")
	for _, s := range []string{u.Node, u.Secret.Name, u.Secret.Key} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

func suite() (hpke.KEM, hpke.KDF, hpke.AEAD) {
	return hpke.DHKEM(ecdh.X25519()), hpke.HKDFSHA256(), hpke.ChaCha20Poly1305()
}

// Public is the key for which passwords are sealed.
type Public struct{ key hpke.PublicKey }

// ParsePublic reads what Key.Public has returned: 32 bytes (RFC 7748 section 5) in base64.
func ParsePublic(text string) (Public, error) {
	b, err := decode(text)
	if err != nil {
		return Public{}, fmt.Errorf("the public key %q: %w", text, err)
	}
	kem, _, _ := suite()
	key, err := kem.NewPublicKey(b)
	if err != nil {
		return Public{}, fmt.Errorf("the public key %q is not one of X25519: %w", text, err)
	}
	return Public{key}, nil
}

// Seal encrypts a password of at most Most bytes: base64 of the encapsulated key, followed by
// the ciphertext. No two results are the same.
func (p Public) Seal(use Use, password []byte) (string, error) {
	if len(password) > Most {
		return "", fmt.Errorf("the password has %d bytes: want at most %d", len(password), Most)
	}
	padded := make([]byte, 1+Most)
	padded[0] = byte(len(password))
	copy(padded[1:], password)
	_, kdf, aead := suite()
	sealed, err := hpke.Seal(p.key, kdf, aead, use.info(), padded)
	if err != nil {
		return "", fmt.Errorf("seal for the node's public key: %w", err)
	}
	return base64.StdEncoding.EncodeToString(sealed), nil
}

// Key is a node's key pair. It prints as a placeholder in every format.
type Key struct{ private *hpke.PrivateKey } // a pointer: fmt does not ask Format for fields of other types

// NewKey makes a key pair.
func NewKey() (Key, error) {
	kem, _, _ := suite()
	private, err := kem.GenerateKey()
	return Key{&private}, err
}

// ParseKey reads what Key.Bytes has returned. The error does not hold it.
func ParseKey(b []byte) (Key, error) {
	kem, _, _ := suite()
	private, err := kem.NewPrivateKey(b)
	if err != nil {
		return Key{}, fmt.Errorf("not a private key of X25519: %w", err)
	}
	return Key{&private}, nil
}

// Bytes is the private key.
func (k Key) Bytes() ([]byte, error) { return (*k.private).Bytes() }

// Public is the public key in base64.
func (k Key) Public() string {
	return base64.StdEncoding.EncodeToString((*k.private).PublicKey().Bytes())
}

var errSealed = errors.New("it is sealed for another key, node, Secret or key of the Secret, or it is damaged")

// Open decrypts what was sealed for this key and this use.
func (k Key) Open(use Use, sealed string) ([]byte, error) {
	b, err := decode(sealed)
	if err != nil {
		return nil, err
	}
	_, kdf, aead := suite()
	padded, err := hpke.Open(*k.private, kdf, aead, use.info(), b)
	if err != nil {
		return nil, errSealed
	}
	if len(padded) != 1+Most || int(padded[0]) > Most || len(bytes.Trim(padded[1+padded[0]:], "\x00")) > 0 {
		return nil, errors.New("it is not of a form that this version of flock knows")
	}
	return padded[1 : 1+padded[0]], nil
}

// decode takes the one base64 of bytes that there is: the library's lets line breaks pass.
func decode(text string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("it is not base64: %w", err)
	}
	if base64.StdEncoding.EncodeToString(b) != text {
		return nil, errors.New("it is not base64 in its one form")
	}
	return b, nil
}

// Format prints a placeholder for every verb.
func (k Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, "(private key)") }

// MarshalText is the placeholder too.
func (k Key) MarshalText() ([]byte, error) { return []byte("(private key)"), nil }
