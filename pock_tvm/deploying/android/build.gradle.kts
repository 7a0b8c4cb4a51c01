// Builds the AAR of this folder: `gradle assembleRelease`, or include it in an app: include(":pock").
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
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions { jvmTarget = "17" }
    sourceSets["main"].apply {
        kotlin.srcDirs("kotlin")
        assets.srcDirs("assets")
        jniLibs.srcDirs("jni")
    }
}
