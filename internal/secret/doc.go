// Package secret handles passphrases: sealed for one host on the wire, redacted in print, wiped
// after use; and the keys that keep the digests of an encrypted backup from telling its content.
package secret
