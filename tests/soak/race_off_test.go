//go:build !race

package soak

var buildFlags []string
