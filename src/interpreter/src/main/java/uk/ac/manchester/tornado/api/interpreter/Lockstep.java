package uk.ac.manchester.tornado.api.interpreter;

import java.util.Arrays;
import java.util.concurrent.locks.LockSupport;

/**
 * A group whose work-items may wait for each other anywhere. Each has a virtual thread, and one of them runs at a time;
 * a work-item that has to wait lets the next ready one run.
 */
final class Lockstep extends Group {
    private enum State {
        READY,
        AT_BARRIER,
        IN_COLLECTIVE,
        DONE
    }

    /** Unwinds a work-item of a group that failed. */
    private static final class Cancelled extends Error {
        private static final long serialVersionUID = 1;

        Cancelled() {
            super(null, null, false, false);
        }
    }

    private final Body body;
    private final State[] states;
    private final Lane[] lanes;
    private final Warp[] warps;
    private final Turn owner = new Turn();
    private boolean failed;
    private boolean closed;

    Lockstep(Launch launch, Body body) {
        super(launch);
        this.body = body;
        int size = launch.grid.groupSize();
        states = new State[size];
        lanes = new Lane[size];
        for (int i = 0; i < size; i++) {
            lanes[i] = new Lane(i);
        }
        warps = new Warp[(size + Warp.LANES - 1) / Warp.LANES];
        for (int i = 0; i < warps.length; i++) {
            warps[i] = new Warp(Math.min(size - i * Warp.LANES, Warp.LANES));
        }
    }

    /** A thread's permission to run. */
    private static class Turn {
        private volatile boolean mine;
        Thread thread = Thread.currentThread();

        void give() {
            mine = true;
            LockSupport.unpark(thread);
        }

        void await() {
            while (!mine) {
                LockSupport.park(this);
            }
            mine = false;
        }
    }

    private final class Lane extends Turn implements Runnable {
        final int number;
        private boolean started;
        private WorkItem item;

        Lane(int number) {
            this.number = number;
            this.thread = Thread.ofVirtual().unstarted(this);
        }

        @Override
        void give() {
            if (started) {
                super.give();
            } else {
                started = true;
                thread.start();
            }
        }

        @Override
        public void run() {
            do {
                item = new WorkItem(Lockstep.this, number, null);
                WorkItem.enter(item);
                try {
                    if (!failed) {
                        body.run(launch.contexts.apply(item));
                    }
                } catch (Cancelled e) {
                    // the failure is recorded
                } catch (Throwable t) {
                    fail(item, t);
                } finally {
                    states[number] = State.DONE;
                    handOn(number).give();
                }
                await();
            } while (!closed);
        }
    }

    @Override
    void runItems() {
        owner.thread = Thread.currentThread();
        failed = false;
        Arrays.fill(states, State.READY);
        for (Warp warp : warps) {
            warp.reset();
        }
        lanes[0].give();
        owner.await();
        WorkItem.enter(null); // resets what a lane entered last
    }

    @Override
    public void close() {
        closed = true;
        for (Lane lane : lanes) {
            if (lane.started) {
                lane.give();
            }
        }
    }

    private void fail(WorkItem item, Throwable cause) {
        failed = true;
        launch.fail(item, cause);
    }

    @Override
    void barrier(WorkItem item) {
        await(item.linear, State.AT_BARRIER);
    }

    @Override
    Object collective(WorkItem item, Warp.Operation operation, Object operand) {
        Warp warp = warps[item.linear / Warp.LANES];
        int first = item.linear - item.linear % Warp.LANES;
        if (warp.arrive(item.linear - first, operation, operand)) {
            Arrays.fill(states, first, first + warp.lanes, State.READY);
        } else {
            await(item.linear, State.IN_COLLECTIVE);
        }
        return warp.result(item.linear - first);
    }

    private void await(int number, State state) {
        states[number] = state;
        Turn next = handOn(number);
        if (next != lanes[number]) {
            next.give();
            lanes[number].await();
        }
        if (failed) {
            throw new Cancelled();
        }
    }

    /** Chooses who runs after this work-item: another one of the group, or the owner if all have returned. */
    private Turn handOn(int number) {
        int next = nextReady(number);
        if (next >= 0) {
            return lanes[next];
        }
        if (firstIn(State.AT_BARRIER) < 0 && firstIn(State.IN_COLLECTIVE) < 0) {
            return owner;
        }
        if (firstIn(State.DONE) < 0 && firstIn(State.IN_COLLECTIVE) < 0) {
            Arrays.fill(states, State.READY);
            phase++;
            return lanes[0];
        }
        reportDivergence();
        return lanes[nextReady(number)];
    }

    private int nextReady(int number) {
        for (int i = 1; i <= states.length; i++) {
            int candidate = (number + i) % states.length;
            if (states[candidate] == State.READY || (failed && states[candidate] != State.DONE)) {
                return candidate;
            }
        }
        return -1;
    }

    private int firstIn(State state) {
        return Arrays.asList(states).indexOf(state);
    }

    private void reportDivergence() {
        int waiting = firstIn(State.IN_COLLECTIVE);
        if (waiting >= 0) {
            int first = waiting - waiting % Warp.LANES;
            Warp warp = warps[first / Warp.LANES];
            int missing = warp.missing();
            State state = states[first + missing];
            fail(
                    lanes[waiting].item,
                    new Fault(warp.operation() + " waits for lane " + missing + " of its warp, which "
                            + (state == State.DONE ? "has returned" : "is at a barrier") + ": work-item "
                            + lanes[first + missing].item.position()));
        } else {
            waiting = firstIn(State.AT_BARRIER);
            fail(lanes[waiting].item, Fault.notReachedBy(lanes[firstIn(State.DONE)].item));
        }
    }
}
