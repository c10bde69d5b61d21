package org.tornadomoe.cli;

import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.quant.Progress;

/**
 * A progress bar on standard error, if that is a terminal, while weights are read and quantised. Closing removes it.
 */
final class ProgressLine implements Progress, AutoCloseable {
    private final boolean visible = Output.errorIsTerminal();
    private final String unit;
    private @Nullable ProgressBar bar;
    private final boolean measures;
    private double error = Double.NaN;
    private long measured;

    /**
     * @param unit what is counted, {@code rows}
     * @param measures whether to measure the weights' error
     */
    ProgressLine(String unit, boolean measures) {
        this.unit = unit;
        this.measures = measures;
    }

    @Override
    public void advanced(long done, long total) {
        if (!visible) {
            return;
        }
        ProgressBar shown = bar;
        if (shown == null) {
            shown = new ProgressBarBuilder()
                    .setTaskName("loading")
                    .setInitialMax(total)
                    .setUnit(" " + unit, 1)
                    .setStyle(ProgressBarStyle.ASCII)
                    .clearDisplayOnFinish()
                    .build();
            bar = shown;
        }
        shown.stepTo(done);
    }

    @Override
    public boolean wantsError() {
        measured = System.nanoTime();
        return measures;
    }

    @Override
    public void quantized(double relativeL2) {
        error = relativeL2;
        measured = System.nanoTime() - measured;
    }

    /** The relative L2 error of the weights against the stored ones; NaN unless measured. */
    double error() {
        return error;
    }

    /** Nanoseconds spent on measuring, which don't count as loading. */
    long measured() {
        return measures ? measured : 0;
    }

    @Override
    public void close() {
        done();
    }

    /** Removes the line, before something else is printed. */
    void done() {
        ProgressBar shown = bar;
        if (shown != null) {
            shown.close();
            bar = null;
        }
    }
}
