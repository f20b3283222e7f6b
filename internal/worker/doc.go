// Package worker is a job's life on its host: it takes commands one by one, decides how often
// each is tried and what its end means, keeps the command alive while it runs, tells how it goes
// on, and stops in order. How a job is done is exec's, how messages travel is bus's.
package worker
