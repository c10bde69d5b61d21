package org.tornadomoe.cli;

import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.quant.Progress;

/** A progress bar on standard error while a layer is quantised, if that is a terminal; gone when it is closed. */
final class ProgressLine implements Progress, AutoCloseable {
    private final boolean visible = Output.errorIsTerminal();
    private @Nullable ProgressBar bar;

    @Override
    public void advanced(long done, long total) {
        if (!visible) {
            return;
        }
        ProgressBar shown = bar;
        if (shown == null) {
            shown = new ProgressBarBuilder()
                    .setTaskName("quantising")
                    .setInitialMax(total)
                    .setUnit(" rows", 1)
                    .setStyle(ProgressBarStyle.ASCII)
                    .clearDisplayOnFinish()
                    .build();
            bar = shown;
        }
        shown.stepTo(done);
    }

    @Override
    public void close() {
        if (bar != null) {
            bar.close();
        }
    }
}
