// Package bird makes BIRD 2 do what a routing.Intent says.
//
// Render is pure: an Intent in, the bytes of a whole bird.conf out, equal bytes
// for an equal Intent. An Applier installs such bytes and brings the running
// daemon to load them, and does nothing at all when the daemon has them already.
//
// Two things hold throughout. No string reaches the configuration: a value is an
// address, a prefix, a number or a symbol made of letters, digits and
// underscores, so that nothing an operator writes can end a statement. And the
// file that BIRD would start from is always one that BIRD has accepted.
package bird
