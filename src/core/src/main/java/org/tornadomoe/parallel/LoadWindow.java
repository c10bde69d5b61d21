package org.tornadomoe.parallel;

import java.util.ArrayList;
import java.util.List;
import org.tornadomoe.config.EplbConfig;

/**
 * The load of each logical expert, in pairs, over the last steps before a rearrangement; and when that is due. One
 * thread at a time.
 */
final class LoadWindow {
    private final EplbConfig config;
    private final int experts;

    /** A ring of steps, [experts] each. */
    private final List<int[]> steps = new ArrayList<>();

    private int next;

    /** Since the last rearrangement; begins at three quarters of an interval, so that the first one comes soon. */
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
