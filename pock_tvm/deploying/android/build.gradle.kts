// Builds the AAR of this folder, as a module of an app that has Android's plug-in 8 and Kotlin's: include(":pock").
plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "pock"
    compileSdk = 35
    defaultConfig {
        minSdk = 21
        consumerProguardFiles("proguard.txt")
    }
    sourceSets["main"].apply {
        manifest.srcFile("AndroidManifest.xml")
        kotlin.srcDirs("kotlin")
        assets.srcDirs("assets")
        jniLibs.srcDirs("jni")
    }
}

kotlin { jvmToolchain(17) }
