// Package fleet is the management side: it makes commands from settings, publishes them to one
// host or to thousands, follows the jobs to their end, and reads the catalog.
//
// It prints nothing: an Observer is told what happens, and every failure is an *Error whose Class
// a program can turn into an exit code.
package fleet
