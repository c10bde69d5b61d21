package org.tornadomoe.parallel;

import java.util.ArrayList;
import java.util.List;
import org.tornadomoe.config.EplbConfig;

/**
 * The load of each logical expert, in pairs, over the last steps before a rearrangement, and the time of the
 * rearrangement. Not thread-safe.
 */
final class LoadWindow {
    private final EplbConfig config;
    private final int experts;

    /** A ring buffer of steps, [experts] each. */
    private final List<int[]> steps = new ArrayList<>();

    private int next;

    /**
     * Steps since the last rearrangement; starts at three quarters of an interval, so that the first rearrangement
     * comes soon.
     */
    private int step;

    LoadWindow(EplbConfig config, int experts) {
        this.config = config;
        this.experts = experts;
        step = config.stepInterval() - config.stepInterval() / 4;
    }

    /** Whether the next step's load counts. */
    boolean isRecording() {
        return step >= config.stepInterval() - config.windowSize();
    }

    /** Adds a step's load, if it counts. */
    void record(int[] load) {
        if (!isRecording()) {
            return;
        }
        if (steps.size() < config.windowSize()) {
            steps.add(load);
        } else {
            steps.set(next, load);
        }
        next = (next + 1) % config.windowSize();
    }

    /** Ends a step. */
    boolean isRearrangementDue() {
        step++;
        if (step < config.stepInterval()) {
            return false;
        }
        step = 0;
        return true;
    }

    /** [experts], the sum over the window. */
    long[] loads() {
        long[] sum = new long[experts];
        for (int[] load : steps) {
            for (int e = 0; e < experts; e++) {
                sum[e] += load[e];
            }
        }
        return sum;
    }
}
