// Package secret handles passphrases: sealed for one host on the wire, redacted in print, wiped
// after use; the keys that keep the digests of an encrypted backup from telling its content; and
// the folder with the publisher's own keys.
package secret
