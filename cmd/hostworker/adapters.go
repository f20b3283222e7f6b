package main

import (
	"context"
	"errors"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/worker"
	"github.com/nasfleet/nasfleet/messages"
)

// queue, delivery and outbox fit bus to the interfaces of worker, which knows no bus.

type queue struct{ commands *bus.Commands }

func (q queue) Next(ctx context.Context) (worker.Delivery, error) {
	d, err := q.commands.Next(ctx)
	if d == nil {
		return nil, err
	}
	return delivery{d}, err
}

type delivery struct{ *bus.Delivery }

func (d delivery) Job() string       { return d.JobID }
func (d delivery) Subject() string   { return d.Delivery.Subject }
func (d delivery) Data() []byte      { return d.Delivery.Data }
func (d delivery) Signature() string { return d.Delivery.Signature }

type outbox struct{ *bus.Bus }

func (o outbox) FinalEvent(ctx context.Context, zone, host, job string) (*messages.Event, error) {
	ev, err := o.Bus.FinalEvent(ctx, zone, host, job)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, nil
	}
	return ev, err
}

func (o outbox) PublishAccepted(ctx context.Context, e messages.Event) (bool, error) {
	err := o.Bus.PublishAccepted(ctx, e)
	if errors.Is(err, bus.ErrCancelled) {
		return false, nil
	}
	return err == nil, err
}

func (o outbox) Command(ctx context.Context, zone, host, job string) ([]byte, error) {
	data, err := o.Bus.Command(ctx, zone, host, job)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, nil
	}
	return data, err
}

// control has a worker answer control requests.
func control(w *worker.Worker) bus.Answerer {
	return func(ctx context.Context, m bus.ControlMessage) messages.ControlReply {
		return w.Control(ctx, worker.Request(m))
	}
}

func (o outbox) PutBackup(ctx context.Context, e messages.CatalogEntry) error {
	return forbidden(o.Bus.PutBackup(ctx, e))
}

func (o outbox) RemoveBackup(ctx context.Context, zone, host, id string) error {
	return forbidden(o.Bus.RemoveBackup(ctx, zone, host, id))
}

// forbidden tells the worker of a right that it has not got.
func forbidden(err error) error {
	if errors.Is(err, bus.ErrUnauthorized) {
		return errors.Join(worker.ErrForbidden, err)
	}
	return err
}
